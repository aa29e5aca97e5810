//! The kernels as text, for NVRTC. Each file is compiled by itself; the one header of theirs is put in its place.

/// A file of kernels.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: &'static str,
    pub text: String,
}

const HEADER: &str = include_str!("device.cuh");

const FILES: [(&str, &str); 12] = [
    ("adafactor.cu", include_str!("adafactor.cu")),
    ("attention.cu", include_str!("attention.cu")),
    ("bias.cu", include_str!("bias.cu")),
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
    let header = HEADER.replace("#pragma once", "");
    let text = |text: &str| text.replace("#include \"device.cuh\"", &header);
    FILES.iter().map(|(name, file)| Source { name, text: text(file) }).collect()
}
