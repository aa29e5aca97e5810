//! The kernels as text, for NVRTC. Each file is compiled by itself; headers are put in their place.

/// A file of kernels.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: &'static str,
    pub text: String,
}

/// Each before what it includes.
const HEADERS: [(&str, &str); 3] = [
    ("tiles.cuh", include_str!("tiles.cuh")),
    ("rounding.cuh", include_str!("rounding.cuh")),
    ("device.cuh", include_str!("device.cuh")),
];

const FILES: [(&str, &str); 13] = [
    ("adafactor.cu", include_str!("adafactor.cu")),
    ("attention.cu", include_str!("attention.cu")),
    ("bias.cu", include_str!("bias.cu")),
    ("cached.cu", include_str!("cached.cu")),
    ("cast.cu", include_str!("cast.cu")),
    ("cross_entropy.cu", include_str!("cross_entropy.cu")),
    ("embedding.cu", include_str!("embedding.cu")),
    ("gather.cu", include_str!("gather.cu")),
    ("gemm.cu", include_str!("gemm.cu")),
    ("norm.cu", include_str!("norm.cu")),
    ("rmsnorm.cu", include_str!("rmsnorm.cu")),
    ("rope.cu", include_str!("rope.cu")),
    ("swiglu.cu", include_str!("swiglu.cu")),
];

/// All files, ready to be compiled.
pub fn all() -> Vec<Source> {
    let whole = |text: &str| {
        let put = |text: String, (name, header): &(&str, &str)| {
            text.replace(&format!("#include \"{name}\""), &header.replace("#pragma once", ""))
        };
        HEADERS.iter().fold(text.to_owned(), put)
    };
    FILES.iter().map(|(name, file)| Source { name, text: whole(file) }).collect()
}
