//! Mistakes planted in the kernels, one at a time: the checks have to find each of them.
//!
//! Barriers and waits that are missing, masks that are off by one, sums that lose a part. A mistake is a piece of
//! source and what stands in its place. Each is compiled with the files that its family's check needs, and nothing else.

use rayon::prelude::*;

use super::{Outcome, Simulator, adafactor, attention, cached, elementwise, gemm, loss, norms, rows};
use crate::suite::simulator::{Source, sources};

/// What is wrong, in which file, instead of what.
type Mistake = (&'static str, &'static str, &'static str, &'static str);

struct Family {
    check: fn(&Simulator) -> Outcome,
    /// Besides `device.cuh`.
    files: &'static [&'static str],
    mistakes: &'static [Mistake],
}

const FAMILIES: [Family; 8] = [
    Family {
        check: norms::check,
        files: &["rmsnorm.cu"],
        mistakes: &[
            (
                "a sum over the block is read before all have written",
                "device.cuh",
                "if (lane == 0) part[warp] = v;\n  __syncthreads();",
                "if (lane == 0) part[warp] = v;",
            ),
            (
                "a sum over the block overwrites one that is still read",
                "device.cuh",
                "__syncthreads();  // part may still be read",
                "// part may still be read",
            ),
            (
                "a sum over columns is read before all have written",
                "device.cuh",
                "range_sum[warp * 32 + lane] = sum;\n  __syncthreads();",
                "range_sum[warp * 32 + lane] = sum;",
            ),
            ("a sum over columns loses the last part", "device.cuh", "(parts + warps - 1) / warps", "parts / warps"),
            ("rounding cuts off", "device.cuh", "u + 0x7FFFu + ((u >> 16) & 1u)", "u"),
            (
                "a barrier that one thread alone reaches",
                "rmsnorm.cu",
                "if (threadIdx.x == 0) rstd[blockIdx.x] = r;",
                "if (threadIdx.x == 0) {\n    rstd[blockIdx.x] = r;\n    __syncthreads();\n  }",
            ),
            (
                "a shuffle that some lanes do not reach",
                "rmsnorm.cu",
                "if (threadIdx.x == 0) rstd[blockIdx.x] = r;",
                "if (threadIdx.x < 7) rstd[blockIdx.x] = warp_sum(r) / 32;",
            ),
            (
                "partial sums begin with what was there",
                "rmsnorm.cu",
                "for (int j = 0; j < 8 && i + j < C; j++) part[i + j] = 0.f;",
                ";",
            ),
            (
                "the wide part of a row is left out",
                "rmsnorm.cu",
                "i = own + KEPT_BACKWARD * step; i < C; i += step) {\n      Columns",
                "i = C; i < C; i += step) {\n      Columns",
            ),
            (
                "the gradient is not added",
                "rmsnorm.cu",
                "d[j] += g[j] * scale[j] * rstd - v",
                "d[j] = g[j] * scale[j] * rstd - v",
            ),
            ("the weight's gradient without rstd", "rmsnorm.cu", "dw[j] = g[j] * v[j] * rstd;", "dw[j] = g[j] * v[j];"),
            (
                "what is normed is x, not the sum",
                "rmsnorm.cu",
                "v = pack8(a);\n  store8<WHOLE>(sum + at, v, left);\n  return v;",
                "store8<WHOLE>(sum + at, pack8(a), left);\n  return v;",
            ),
            (
                "heads are summed over the warp",
                "rmsnorm.cu",
                "warp_sum(square_sum(v), my.lanes)",
                "warp_sum(square_sum(v))",
            ),
            (
                "heads' gradients are read before all have written",
                "rmsnorm.cu",
                "sums[j * 256 + threadIdx.x] = dw[j];\n  __syncthreads();",
                "sums[j * 256 + threadIdx.x] = dw[j];",
            ),
            (
                "rows past the end are normed",
                "rmsnorm.cu",
                "bool in = row < rows && left > 0;\n    uint4 bits",
                "bool in = row < rows + 1 && left > 0;\n    uint4 bits",
            ),
        ],
    },
    Family {
        check: rows::check,
        files: &["embedding.cu", "gather.cu", "bias.cu", "rmsnorm.cu"],
        mistakes: &[
            ("the gradient of a row is not added", "embedding.cu", "+= total;", "= total;"),
            ("an id's last tokens are left out", "embedding.cu", "(last - first + 7) / 8", "(last - first) / 8"),
            (
                "ids that are not there have gradients",
                "embedding.cu",
                "if (blockIdx.x >= *count) return;",
                "(void)count;",
            ),
            ("a part is read before it is written", "embedding.cu", "= sum[j];\n  __syncthreads();", "= sum[j];"),
            (
                "the last of a row is not copied",
                "device.cuh",
                "for (int i = threadIdx.x * 8; i < C; i += blockDim.x * 8) store8",
                "for (int i = threadIdx.x * 8; i < C - 8; i += blockDim.x * 8) store8",
            ),
            (
                "rows are scattered to where they came from",
                "gather.cu",
                "dx + (i64)rows[r] * C, dy + r * C",
                "dx + r * C, dy + r * C",
            ),
            (
                "the bias of another column",
                "bias.cu",
                "load8<WHOLE>(bias + column, left)",
                "load8<false>(bias + column / 2, left)",
            ),
            ("rows of a bias are summed twice", "bias.cu", "r += 8", "r += 7"),
            ("a bias's part is read before it is written", "bias.cu", "= sum[j];\n  __syncthreads();", "= sum[j];"),
            (
                "the last rows of a bias are left out",
                "bias.cu",
                "(rows + gridDim.y - 1) / gridDim.y",
                "rows / gridDim.y",
            ),
        ],
    },
    Family {
        check: elementwise::check,
        files: &["rope.cu", "swiglu.cu", "cast.cu"],
        mistakes: &[
            ("back turns forward", "rope.cu", "back ? -1.f : 1.f", "1.f"),
            ("positions of heads instead of tokens", "rope.cu", "positions[head / heads]", "positions[head % heads]"),
            ("halves change places", "rope.cu", "*(uint4*)low = pack8(a);", "*(uint4*)low = pack8(b);"),
            ("the slope of silu without its second part", "swiglu.cu", "(s + silu * (1.f - s))", "s"),
            ("up gets the gradient of another gate", "swiglu.cu", "u[j] = d[j] * silu;", "u[j] = d[j] * g[j] * s;"),
            (
                "the rest of eight is left out",
                "swiglu.cu",
                "store8<WHOLE>(h, pack8(u), left);",
                "if (WHOLE) store8<WHOLE>(h, pack8(u), left);",
            ),
            ("the rest of eight is not cast", "cast.cu", "j < left; j++", "j < left - 1; j++"),
            (
                "what is not a number is rounded",
                "device.cuh",
                "if ((u & 0x7FFFFFFFu) > 0x7F800000u) return (bf16)((u >> 16) | 0x40u);",
                "",
            ),
        ],
    },
    Family {
        check: loss::check,
        files: &["cross_entropy.cu", "norm.cu"],
        mistakes: &[
            (
                "the target's logit is read after it is overwritten",
                "cross_entropy.cu",
                "__syncthreads();  // the target's logit",
                "// the target's logit",
            ),
            (
                "a maximum is read before all have written",
                "cross_entropy.cu",
                "part[warp] = own;\n  __syncthreads();",
                "part[warp] = own;",
            ),
            ("a sum keeps an old maximum", "cross_entropy.cu", "a.sum * exp2_fast((a.max - m) * LOG2E)", "a.sum"),
            (
                "natural and binary logarithms change places",
                "cross_entropy.cu",
                "log2f(all.sum) * LN2",
                "log2f(all.sum)",
            ),
            ("the gradient forgets the target", "cross_entropy.cu", "(i + j == target ? gradient : 0.f)", "0.f"),
            (
                "the gradient without a target is what was there",
                "cross_entropy.cu",
                "with_gradient && i < V; i += blockDim.x) row[i] = 0",
                "i < 0; i++) row[i] = 0",
            ),
            (
                "the loss without a target is what was there",
                "cross_entropy.cu",
                "if (threadIdx.x == 0) loss[blockIdx.x] = 0.f;",
                "",
            ),
            ("the last of several tokens", "cross_entropy.cu", "b.id < a.id", "b.id > a.id"),
            ("the likeliest of a part of the row", "cross_entropy.cu", "best = better(best, part[w]);", ""),
            ("likelihoods with the wrong sign", "cross_entropy.cu", "(float)-sum", "(float)sum"),
            (
                "the mean of all rows",
                "cross_entropy.cu",
                "max(first_row[s + 1] - first_row[s], 1u)",
                "max(first_row[s + 1], 1u)",
            ),
            ("squares in f32", "norm.cu", "(double)v.x * v.x", "v.x * v.x"),
            ("the rest of four is left out", "norm.cu", "i = whole * 4 + first_item()", "i = n"),
        ],
    },
    Family {
        check: adafactor::check,
        files: &["adafactor.cu", "rounding.cuh"],
        mistakes: &[
            ("the mean of rows over columns", "adafactor.cu", "(float)(sum / R)", "(float)(sum / C)"),
            ("no clipping", "adafactor.cu", "max(1.f, (float)sqrt(u2) / step->clip_threshold)", "1.f"),
            ("no weight decay", "adafactor.cu", "w - by.decay * w", "w"),
            (
                "the gradient's scale is left out of the update",
                "adafactor.cu",
                "scale * rsqrtf(vr[first + r] / scalars[0])",
                "rsqrtf(vr[first + r] / scalars[0])",
            ),
            (
                "the gradient's scale is left out of a vector's moments",
                "adafactor.cu",
                "float x = g[i] * scale, moment",
                "float x = g[i], moment",
            ),
            ("the smallest size is added", "adafactor.cu", "max(step->eps2, rms_w)", "(step->eps2 + rms_w)"),
            (
                "sums of rows are read before all have written",
                "adafactor.cu",
                "part[r * 32 + warp] = v[r];\n  __syncthreads();",
                "part[r * 32 + warp] = v[r];",
            ),
            (
                "sums of rows overwrite those still read",
                "adafactor.cu",
                "__syncthreads();  // part may still be read",
                "// part may still be read",
            ),
            (
                "sums of columns begin with what was there",
                "adafactor.cu",
                "store4<WHOLE>(columns + j, make_float4(0.f, 0.f, 0.f, 0.f), C - j);",
                ";",
            ),
            (
                "the copy in bf16 has neighbours in each other's place",
                "adafactor.cu",
                "pack(v.x, v.y)",
                "pack(v.y, v.x)",
            ),
            ("moments keep nothing", "adafactor.cu", "step.beta2 * vr[first + r] +", ""),
            (
                "a skipped step changes the moments of rows",
                "adafactor.cu",
                "if (!step->done) return;\n  float* columns",
                "float* columns",
            ),
            (
                "a skipped step changes the moments of columns",
                "adafactor.cu",
                "if (!step->done) return;\n  if (blockIdx.x",
                "if (blockIdx.x",
            ),
            (
                "a skipped step changes a matrix",
                "adafactor.cu",
                "parts, int R, int C) {\n  if (!step->done) return;\n  double",
                "parts, int R, int C) {\n  double",
            ),
            (
                "a skipped step changes a vector",
                "adafactor.cu",
                "if (!step->done) return;\n  float beta2",
                "float beta2",
            ),
            ("a skipped step counts", "adafactor.cu", "*steps_done += *finite", "*steps_done += 1"),
            ("gradients are made longer", "adafactor.cu", "asked->max_norm < length ? ", "length > 0 ? "),
            (
                "a relative rate without bound",
                "adafactor.cu",
                "asked->relative ? (root < 1e-2 ? root : 1e-2)",
                "asked->relative ? root",
            ),
            (
                "the root of the sum, not of the mean",
                "adafactor.cu",
                "block_sum(u2) / ((double)R * C)",
                "block_sum(u2)",
            ),
            ("weights in bf16 lose the second of four", "device.cuh", "number[0] | number[1] << 16", "number[0]"),
            ("weights in bf16 are left twice", "device.cuh", "u32 word[2] = {v.x, v.y};", "u32 word[2] = {v.x, v.x};"),
            ("a vector in bf16 is rounded to nearest", "adafactor.cu", "(bf16)rounded(v, kept.draws, i)", "to_bf(v)"),
            (
                "rows draw alike",
                "adafactor.cu",
                "rounded4<WHOLE>(v, kept.draws, at)",
                "rounded4<WHOLE>(v, kept.draws, at & 7)",
            ),
            (
                "the step and the tensor change places",
                "adafactor.cu",
                "(u32)tensor, step->number",
                "step->number, (u32)tensor",
            ),
            ("the step before", "adafactor.cu", "s.number = t", "s.number = t - 1"),
            ("no seed", "adafactor.cu", "s.seed = asked->seed", "s.seed = 0"),
            ("rounding by draws cuts off", "rounding.cuh", "(u + (random & 0xFFFFu)) >> 16", "u >> 16"),
            ("what bf16 holds moves", "rounding.cuh", "random & 0xFFFFu", "random & 0x1FFFFu"),
            (
                "a draw is one too many",
                "rounding.cuh",
                "(u + (random & 0xFFFFu)) >> 16",
                "(u + (random & 0xFFFFu) + 1) >> 16",
            ),
            ("NaN is carried on", "rounding.cuh", "if ((u & 0x7F800000u) == 0x7F800000u) return to_bf(f);", ""),
            (
                "neighbours have each other's draws",
                "rounding.cuh",
                "rounded(v.x, random.x) | rounded(v.y, random.y) << 16",
                "rounded(v.x, random.y) | rounded(v.y, random.x) << 16",
            ),
            ("neighbours draw alike", "rounding.cuh", "rounded(v.w, random.w)", "rounded(v.w, random.z)"),
            ("neighbours by themselves draw alike", "rounding.cuh", "(odd ? random.y : random.x)", "random.x"),
            (
                "neighbours of an odd row draw alike",
                "rounding.cuh",
                "rounded(v.w, d, element + 3)",
                "rounded(v.w, d, element + 2)",
            ),
            ("tensors draw alike", "rounding.cuh", "d.tensor, d.step", "0, d.step"),
            ("steps draw alike", "rounding.cuh", "d.tensor, d.step", "d.tensor, 0"),
            ("half of a seed", "rounding.cuh", "(u32)(d.seed >> 32)", "0"),
            ("one round of ten is left out", "rounding.cuh", "round < 10", "round < 9"),
            ("rounds have one key", "rounding.cuh", "k += 0x9E3779B9u, l += 0xBB67AE85u;", ";"),
        ],
    },
    Family {
        check: gemm::check,
        files: &["gemm.cu"],
        mistakes: &[
            (
                "a stage is used before it has landed",
                "gemm.cu",
                "copies_wait<STAGES - 2>();",
                "copies_wait<STAGES - 1>();",
            ),
            (
                "a stage is used before others' copies are there",
                "gemm.cu",
                "__syncthreads();  // this stage",
                "// this stage",
            ),
            ("a stage is overwritten while it is used", "gemm.cu", "load(step + STAGES - 1);", "load(step + STAGES);"),
            ("copies belong to no group", "gemm.cu", "copies_commit();  // an empty", "// an empty"),
            (
                "operands of the right change places",
                "gemm.cu",
                "right[j / 2][j % 2 * 2]",
                "right[j / 2][(1 - j % 2) * 2]",
            ),
            (
                "a turned left operand's quarters change places",
                "gemm.cu",
                "(k + (lane >> 4) * 8 + (lane & 7)) * (TILE + 8) + row + (lane >> 3 & 1) * 8",
                "(k + (lane >> 3 & 1) * 8 + (lane & 7)) * (TILE + 8) + row + (lane >> 4) * 8",
            ),
            (
                "the last column is not written",
                "gemm.cu",
                "bool second = column + 1 < n;",
                "bool second = column + 2 < n;",
            ),
            ("the end of the common dimension is left out", "gemm.cu", "(k + DEPTH - 1) / DEPTH", "max(k / DEPTH, 1)"),
            ("what was there is overwritten", "gemm.cu", "v += value(at[0]);", ""),
        ],
    },
    Family {
        check: attention::check,
        files: &["attention.cu", "tiles.cuh"],
        mistakes: &[
            ("keys are used before they have landed", "attention.cu", "copies_wait<1>();", ";"),
            (
                "the last keys are used before they have landed",
                "attention.cu",
                "} else {\n      copies_wait<0>();",
                "} else {\n      copies_wait<1>();",
            ),
            ("one group too few is waited for", "attention.cu", "copies_wait<1>();", "copies_wait<2>();"),
            (
                "keys are used before others' copies are there",
                "attention.cu",
                "    }\n    __syncthreads();\n\n    float s[",
                "    }\n\n    float s[",
            ),
            (
                "keys are overwritten while they are used",
                "attention.cu",
                "__syncthreads();  // before the next copies overwrite this buffer",
                "",
            ),
            (
                "the first of a segment is hidden",
                "attention.cu",
                "key >= start[r] && key <= row[r] ? s",
                "key > start[r] && key <= row[r] ? s",
            ),
            ("segments see each other", "attention.cu", "key >= start[r] && key <= row[r] ? s", "key <= row[r] ? s"),
            (
                "a token sees the next one",
                "attention.cu",
                "key >= start[r] && key <= row[r] ? s",
                "key >= start[r] && key <= row[r] + 1 ? s",
            ),
            (
                "the wrong head of keys",
                "attention.cu",
                "h = blockIdx.y, key_head = h / (H / K), q0",
                "h = blockIdx.y, key_head = h % K, q0",
            ),
            (
                "the sum is not rescaled",
                "tiles.cuh",
                "sum[n][c] *= rescale[c >> 1];",
                "sum[n][c] *= c < 3 ? rescale[c >> 1] : 1.f;",
            ),
            ("the total is not rescaled", "tiles.cuh", "total[r] *= rescale[r];", ""),
            (
                "keys change places",
                "tiles.cuh",
                "mma16816(s[2 * n], a, low);\n    mma16816(s[2 * n + 1], a, high);",
                "mma16816(s[2 * n], a, high);\n    mma16816(s[2 * n + 1], a, low);",
            ),
            (
                "a row's lanes do not agree on the maximum",
                "tiles.cuh",
                "greatest[r] = max(greatest[r], __shfl_xor_sync(~0u, greatest[r], 2));",
                "",
            ),
            (
                "keys' queries are used before all have landed",
                "attention.cu",
                "      copies_wait<0>();\n      __syncthreads();\n      float p",
                "      copies_wait<0>();\n      float p",
            ),
            (
                "keys' queries are overwritten while they are used",
                "attention.cu",
                "queries);\n      __syncthreads();  // before the next copies overwrite the tiles",
                "queries);",
            ),
            (
                "queries' keys are overwritten while they are used",
                "attention.cu",
                "multiply<D, ROWS>(sum, ds, keys);\n    __syncthreads();",
                "multiply<D, ROWS>(sum, ds, keys);\n   ",
            ),
            (
                "keys stop at the first one's segment",
                "attention.cu",
                "segment_end[min(k0 + OWNED, N) - 1]",
                "segment_end[k0]",
            ),
            (
                "delta is forgotten",
                "attention.cu",
                "e * (ds[n][2 * r + c] - d) * scale",
                "e * ds[n][2 * r + c] * scale",
            ),
            (
                "queries begin at the last one's segment",
                "attention.cu",
                "k0 = (int)segment_start[q0] / ROWS * ROWS",
                "k0 = (int)segment_start[end - 1] / ROWS * ROWS",
            ),
            (
                "the first of a segment gives no gradient",
                "attention.cu",
                "key[r] <= i && key[r] >= start;",
                "key[r] <= i && key[r] > start;",
            ),
            (
                "a group's heads but the first are left out",
                "attention.cu",
                "h < (key_head + 1) * group; h++",
                "h < key_head * group + 1; h++",
            ),
            ("delta of another head", "attention.cu", "delta[row % H * N + row / H] = sum", "delta[row] = sum"),
            ("delta of half a row", "attention.cu", "warp_sum(sum, LANES)", "warp_sum(sum, LANES / 2)"),
        ],
    },
    Family {
        check: cached::check,
        files: &["cached.cu", "tiles.cuh"],
        mistakes: &[
            ("keys are used before they have landed", "cached.cu", "copies_wait<1>();", ";"),
            (
                "the last keys are used before they have landed",
                "cached.cu",
                "} else {\n      copies_wait<0>();",
                "} else {\n      copies_wait<1>();",
            ),
            (
                "keys are used before others' copies are there",
                "cached.cu",
                "    }\n    __syncthreads();\n\n    const bf16 *own_keys",
                "    }\n\n    const bf16 *own_keys",
            ),
            (
                "keys are overwritten while they are used",
                "cached.cu",
                "__syncthreads();  // before the next copies overwrite this buffer",
                "",
            ),
            ("a token sees the next one", "cached.cu", "key <= seen[c >> 1] ?", "key <= seen[c >> 1] + 1 ?"),
            ("a token does not see itself", "cached.cu", "key <= seen[c >> 1] ?", "key < seen[c >> 1] ?"),
            (
                "rows of one token see what the first sees",
                "cached.cu",
                "position + g / heads, position + (g + 8) / heads",
                "position + g / heads, position + g / heads",
            ),
            ("the first of one's own is looked for in the cache", "cached.cu", "i < text.kept ?", "i <= text.kept ?"),
            ("the past of the first text", "cached.cu", "(text.place + i)", "i"),
            ("one's own tokens of another segment", "cached.cu", "text.start + i - text.kept", "i - text.kept"),
            (
                "the wrong head of keys",
                "cached.cu",
                "key_head = blockIdx.y / stacks, in_group = blockIdx.y % stacks * QUERIES",
                "key_head = 0, in_group = blockIdx.y % stacks * QUERIES",
            ),
            (
                "the rest of a large group is left out",
                "cached.cu",
                "in_group = blockIdx.y % stacks * QUERIES",
                "in_group = 0",
            ),
            ("a block goes on into the next segment", "cached.cu", "(int)segment_end[n0] - n0", "N - n0"),
            ("tokens that no block begins with", "cached.cu", "(n0 - start) % tokens != 0", "n0 % tokens != 0"),
            ("the last tile is left out", "cached.cu", "tiles = (end + KEYS(D) - 1)", "tiles = max(end, KEYS(D))"),
            (
                "the last part is left out",
                "cached.cu",
                "(tiles + gridDim.z - 1) / gridDim.z",
                "max(tiles / gridDim.z, 1u)",
            ),
            (
                "warps read each other's keys",
                "cached.cu",
                "keys + buffer * TILE + warp * 16 * LD(D)",
                "keys + buffer * TILE",
            ),
            (
                "warps' sums are read before all have written",
                "cached.cu",
                "= {max_score[r], total[r]};\n  }\n  __syncthreads();",
                "= {max_score[r], total[r]};\n  }",
            ),
            ("sums are not brought to one maximum", "cached.cu", "value[j] += part[j] * factor", "value[j] += part[j]"),
            ("weights are not brought to one maximum", "cached.cu", "own.sum * factor", "own.sum"),
            ("a range without keys counts", "cached.cu", "own.max == NEGATIVE_INFINITY ? 0.f", "own.max > 1e30f ? 0.f"),
            (
                "a part takes another's place",
                "cached.cu",
                "query += (i64)blockIdx.z * N * H",
                "query += (i64)blockIdx.z * N",
            ),
            ("a row of lse for each token", "cached.cu", "query % H * N + query / H", "query"),
            ("keys are kept at the beginning", "cached.cu", "(i64)places[from] + positions[from]", "places[from]"),
            ("values are kept for keys", "cached.cu", "copy_row(kept_k + to * C, k", "copy_row(kept_k + to * C, v"),
        ],
    },
];

/// The files of a family, with a mistake in one of them.
fn plant(family: &Family, mistake: Option<&Mistake>) -> Vec<Source> {
    let mut sources = sources();
    sources.retain(|s| s.name == "device.cuh" || family.files.contains(&s.name.as_str()));
    if let Some((what, file, from, to)) = mistake {
        let source = sources.iter_mut().find(|s| s.name == *file).expect("the family has the file");
        assert_eq!(source.text.matches(from).count(), 1, "`{what}` is planted where `{from}` stands, once");
        source.text = source.text.replace(from, to);
    }
    for source in &mut sources {
        // Heads of two widths are enough here, and the others most of the compiler's work.
        for dim in [16, 64, 128, 256] {
            for kernels in ["ATTENTION", "CACHED"] {
                source.text = source.text.replace(&format!("\n{kernels}({dim})"), "");
            }
        }
    }
    sources
}

fn check(family: &Family, mistake: Option<&Mistake>) -> Outcome {
    (family.check)(&Simulator::build(&plant(family, mistake), "-O1").expect("a mistake is one that compilers let pass"))
}

#[test]
fn every_mistake_is_found() {
    if Simulator::get().is_none() {
        return;
    }
    for family in &FAMILIES {
        check(family, None).expect("without a mistake there is nothing to find");
    }
    let mistakes: Vec<(&Family, &Mistake)> =
        FAMILIES.iter().flat_map(|f| f.mistakes.iter().map(move |m| (f, m))).collect();
    let missed: Vec<&str> = mistakes
        .par_iter()
        .filter_map(|(family, mistake)| match check(family, Some(mistake)) {
            Ok(()) => Some(mistake.0),
            Err(report) => {
                println!("{} ({}): {}", mistake.0, mistake.1, report.lines().next().unwrap_or_default());
                None
            }
        })
        .collect();
    assert!(
        missed.is_empty(),
        "{} of {} planted mistakes went unnoticed:\n{}",
        missed.len(),
        mistakes.len(),
        missed.join("\n")
    );
}
