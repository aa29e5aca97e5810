//! Matrix products by cuBLASLt.
//!
//! cuBLASLt thinks in columns: a row-major (r, c) matrix is its (c, r) matrix. So it is asked for `cᵀ = bᵀ aᵀ`, with b
//! as its left operand. Asking for the best algorithm takes longer than many a product: the answer is kept for each
//! shape (a plan). With one stream its results are the same in every run, as NVIDIA documents
//! (<https://docs.nvidia.com/cuda/cublas/#results-reproducibility>).

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t::CUBLAS_COMPUTE_32F,
    cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB},
    cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
    cublasLtMatrixLayout_t,
    cudaDataType::{CUDA_R_16BF, CUDA_R_32F},
};

use super::device::{Form, Product};

/// CUBLAS_OP_T of cublasOperation_t, which cudarc has only in its part for cuBLAS.
const TRANSPOSED: i32 = 1;

/// cuBLASLt with the plans made so far.
pub struct Products {
    handle: cublasLtHandle_t,
    plans: HashMap<Shape, Plan>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    form: Form,
    m: usize,
    n: usize,
    k: usize,
    exact: bool,
}

struct Plan {
    product: cublasLtMatmulDesc_t,
    left: cublasLtMatrixLayout_t,
    right: cublasLtMatrixLayout_t,
    out: cublasLtMatrixLayout_t,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Products {
    /// The library has to be there, and a context current.
    pub fn new() -> Result<Products, CublasError> {
        Ok(Products { handle: lt::create_handle()?, plans: HashMap::new() })
    }

    /// Puts a product into the stream's queue.
    ///
    /// # Safety
    ///
    /// `arena` is device memory that holds the product's buffers and the workspace, `stream` is alive, and its context
    /// is current.
    pub unsafe fn multiply(
        &mut self,
        product: &Product,
        arena: u64,
        workspace: (u64, usize),
        stream: *mut c_void,
    ) -> Result<(), CublasError> {
        let Product { form, c, a, b, m, n, k, exact, add } = *product;
        let shape = Shape { form, m, n, k, exact };
        if !self.plans.contains_key(&shape) {
            let plan = Plan::new(self.handle, shape, workspace.1)?;
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        let (alpha, beta) = (1f32, if add { 1f32 } else { 0f32 });
        let [c, a, b] = [c, a, b].map(|buffer| (arena + buffer.at) as *mut c_void);
        // SAFETY: the caller's part, and the plan's: its objects live as long as `self`.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                b,
                plan.left,
                a,
                plan.right,
                c,
                plan.out,
                c,
                plan.out,
                &plan.algorithm,
                (arena + workspace.0) as *mut c_void,
                workspace.1,
                stream.cast(),
            )
        }
    }
}

impl Plan {
    fn new(handle: cublasLtHandle_t, shape: Shape, workspace: usize) -> Result<Plan, CublasError> {
        let Shape { form, m, n, k, exact } = shape;
        let [m, n, k] = [m, n, k].map(|size| size as u64);
        let product = lt::create_matmul_desc(CUBLAS_COMPUTE_32F, CUDA_R_32F)?;
        let layout = |rows: u64, columns: u64| lt::create_matrix_layout(CUDA_R_16BF, rows, columns, rows as i64);
        // As columns: b is (k, n) of `Nt`, to be transposed, else (n, k); a is (m, k) of `Tn`, likewise, else (k, m).
        let left = if form == Form::Nt { layout(k, n)? } else { layout(n, k)? };
        let right = if form == Form::Tn { layout(m, k)? } else { layout(k, m)? };
        let out = lt::create_matrix_layout(if exact { CUDA_R_32F } else { CUDA_R_16BF }, n, m, n as i64)?;
        let transposed = TRANSPOSED;
        let set = |attribute| {
            // SAFETY: `product` is alive, and these attributes are one cublasOperation_t, which is an int.
            unsafe {
                let size = size_of_val(&transposed);
                lt::set_matmul_desc_attribute(product, attribute, (&raw const transposed).cast(), size)
            }
        };
        match form {
            Form::Nt => set(CUBLASLT_MATMUL_DESC_TRANSA)?,
            Form::Tn => set(CUBLASLT_MATMUL_DESC_TRANSB)?,
            Form::Nn => {}
        }
        let preference = lt::create_matmul_pref()?;
        // SAFETY: all of these were made above, and the attribute is one size_t.
        let algorithm = unsafe {
            let size = size_of_val(&workspace);
            lt::set_matmul_pref_attribute(
                preference,
                CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size,
            )?;
            let best = lt::get_matmul_algo_heuristic(handle, product, left, right, out, out, preference);
            lt::destroy_matmul_pref(preference)?;
            best?.algo
        };
        Ok(Plan { product, left, right, out, algorithm })
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        for plan in self.plans.values() {
            // SAFETY: they were made in `Plan::new` and are used no more. What cannot be freed now goes with the process.
            unsafe {
                let _ = lt::destroy_matmul_desc(plan.product);
                for layout in [plan.left, plan.right, plan.out] {
                    let _ = lt::destroy_matrix_layout(layout);
                }
            }
        }
        // SAFETY: as above.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}
