//! Fully connected layers: matrix products by cuBLASLt.
//!
//! With `x[n, d]`, `w[k, d]` and `y[n, k]`, all row-major and without gaps:
//!
//! ```text
//! forward          y  = x w^T
//! backward data    dx = dy w
//! backward filter  dw = dy^T x       (or dw += dy^T x)
//! ```
//!
//! Operands are f32 or bf16, sums are f32. Bias and relu are not done here: our own kernel follows,
//! so that a value stored as bf16 is rounded once.
//!
//! **Pinned algorithms.** For each direction, sizes and operand type the library's heuristic is
//! asked once, under a fixed limit of workspace, and its first answer is used ever after. cuBLAS
//! promises the same bits at every run for one version of the library, one architecture and one
//! number of multiprocessors, as long as concurrent streams do not make it choose anew; with a
//! named algorithm and the caller's own workspace nothing is left to choose. Of the ways to add up
//! a sum that was split among blocks only one is admitted: every part is written to the workspace
//! as f32, and a separate step adds the parts (`CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`; a sum
//! that is not split needs none and is always admitted). `INPLACE` is not: blocks take turns at
//! the output by counters, and in which order is not promised. `OUTPUT_TYPE` is not: it would
//! round the parts of a bf16 result.
//!
//! **Row-major.** The library is column-major: it sees our `[rows, columns]` as its transpose, a
//! `columns x rows` matrix with leading dimension `columns`. So it is asked for the transposed
//! equation `D = op(A) op(B)`:
//!
//! ```text
//!                  D           op(A)               op(B)
//! forward          y^T  (k,n)  w,    A is w^T (d,k) transposed    x^T (d,n) as it is
//! backward data    dx^T (d,n)  w^T,  A is w^T (d,k) as it is      dy^T (k,n) as it is
//! backward filter  dw^T (d,k)  x^T,  A is x^T (d,n) as it is      dy, B is dy^T (k,n) transposed
//! ```

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::sys::CUstream;

use super::plan::Direction;
use crate::{Error, Result};

/// Bytes of workspace that an algorithm may ask for: NVIDIA's recommendation for Hopper.
pub const WORKSPACE: usize = 32 << 20;

/// `cublasOperation_t`, which cudarc declares for cuBLAS only: as it is, and transposed.
const CUBLAS_OP_N: i32 = 0;
const CUBLAS_OP_T: i32 = 1;

/// Alignment in bytes that every matrix must have. The library assumes 256 unless told.
pub const ALIGNMENT: u64 = 16;

/// Alignment in bytes that the library asks of the workspace.
pub const WORKSPACE_ALIGNMENT: u64 = 256;

/// Sizes of a fully connected layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fc {
    /// Samples.
    pub n: usize,
    /// Filters: values a sample of the output.
    pub k: usize,
    /// Values a sample of the input.
    pub d: usize,
}

/// How operands are stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operands {
    /// f32, multiplied as f32.
    F32,
    /// f32, cut to TF32 by the tensor cores.
    Tf32,
    /// bf16.
    Bf16,
}

/// Whether the library can be loaded. Never panics.
pub fn present() -> bool {
    // SAFETY: opening the library runs its initialisers, which NVIDIA's library allows at any time.
    unsafe { sys::is_culib_present() }
}

/// The library, with a plan for each product that was asked for.
///
/// The CUDA context must be current on the calling thread, in [`Blas::new`] and ever after: the
/// library takes the device from there.
pub struct Blas(Mutex<Library>);

impl Blas {
    /// Starts the library on the current context's device.
    pub fn new() -> Result<Self> {
        if !present() {
            return Err(Error::Backend("cuBLASLt (libcublasLt.so) cannot be loaded".into()));
        }
        let raw = result::create_handle()
            .map_err(|CublasError(status)| Error::Backend(format!("cuBLASLt: {status:?}")))?;
        let handle = Owned { raw, destroy: result::destroy_handle };
        Ok(Blas(Mutex::new(Library { plans: HashMap::new(), handle })))
    }

    /// The library's version as one number, on which results may depend.
    pub fn version(&self) -> usize {
        // SAFETY: the function takes nothing and has no conditions.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// Chooses the algorithm of a product ahead of its first use; false if the library has none for
    /// these sizes. To be called when a network is planned: a product that was not prepared is
    /// planned at its first call, which is too late while a graph is captured. (CUDA also loads a
    /// kernel only when it is first launched, so a step should run once before it is captured.)
    pub fn prepare(&self, direction: Direction, sizes: Fc, operands: Operands) -> Result<bool> {
        Ok(self.lock().plan(Product { direction, sizes, operands })?.is_some())
    }

    /// `y[n, k] = x[n, d] w[k, d]^T`, with f32 `y`.
    ///
    /// `workspace` is an address and a number of bytes; [`WORKSPACE`] bytes are always enough.
    ///
    /// # Safety
    /// The addresses must be of device memory that holds these matrices, belongs to the current
    /// context and stays allocated until the stream has done the work. `y` and the workspace must
    /// overlap nothing else, and nothing else may use the workspace meanwhile. `stream` must be of
    /// that context.
    pub unsafe fn forward(
        &self,
        stream: CUstream,
        y: u64,
        x: u64,
        w: u64,
        sizes: Fc,
        operands: Operands,
        workspace: (u64, usize),
    ) -> Result<()> {
        let product = Product { direction: Direction::Forward, sizes, operands };
        // SAFETY: the caller's promise.
        unsafe { self.multiply(product, stream, y, w, x, 0.0, workspace) }
    }

    /// `dx[n, d] = dy[n, k] w[k, d]`, with `dx` stored as the operands are.
    ///
    /// # Safety
    /// As for [`Blas::forward`], with `dx` in the place of `y`.
    pub unsafe fn backward_data(
        &self,
        stream: CUstream,
        dx: u64,
        dy: u64,
        w: u64,
        sizes: Fc,
        operands: Operands,
        workspace: (u64, usize),
    ) -> Result<()> {
        let product = Product { direction: Direction::BackwardData, sizes, operands };
        // SAFETY: the caller's promise.
        unsafe { self.multiply(product, stream, dx, w, dy, 0.0, workspace) }
    }

    /// `dw[k, d] = dy[n, k]^T x[n, d]`, or the same added to what is there, with f32 `dw`.
    ///
    /// # Safety
    /// As for [`Blas::forward`], with `dw` in the place of `y`.
    pub unsafe fn backward_filter(
        &self,
        stream: CUstream,
        dw: u64,
        dy: u64,
        x: u64,
        accumulate: bool,
        sizes: Fc,
        operands: Operands,
        workspace: (u64, usize),
    ) -> Result<()> {
        let product = Product { direction: Direction::BackwardFilter, sizes, operands };
        let beta = if accumulate { 1.0 } else { 0.0 };
        // SAFETY: the caller's promise.
        unsafe { self.multiply(product, stream, dw, x, dy, beta, workspace) }
    }

    /// `D = op(A) op(B) + beta D`.
    ///
    /// # Safety
    /// As for [`Blas::forward`], with `d` in the place of `y`.
    unsafe fn multiply(
        &self,
        product: Product,
        stream: CUstream,
        d: u64,
        a: u64,
        b: u64,
        beta: f32,
        workspace: (u64, usize),
    ) -> Result<()> {
        let mut library = self.lock();
        let handle = library.handle.raw;
        let plan = library.plan(product)?.ok_or_else(|| product.error("no algorithm"))?;
        if !(d | a | b).is_multiple_of(ALIGNMENT) {
            return Err(product.error(format!("a matrix is not aligned to {ALIGNMENT} bytes")));
        }
        if !workspace.0.is_multiple_of(WORKSPACE_ALIGNMENT) || workspace.1 < plan.workspace {
            return Err(product.error(format!(
                "needs {} bytes of workspace aligned to {WORKSPACE_ALIGNMENT}, has {} at {:#x}",
                plan.workspace, workspace.1, workspace.0
            )));
        }
        let alpha = 1f32;
        // SAFETY: handle, descriptors and algorithm live as long as the library does, which is
        // locked; the scalars are on the host, as the descriptor's default has it, and are read
        // before the call returns. C is D, which is read only if beta is not 0. The rest is the
        // caller's promise.
        unsafe {
            result::matmul(
                handle,
                plan.operation.raw,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                a as *const c_void,
                plan.a.raw,
                b as *const c_void,
                plan.b.raw,
                d as *const c_void,
                plan.d.raw,
                d as *mut c_void,
                plan.d.raw,
                &plan.algorithm,
                workspace.0 as *mut c_void,
                workspace.1,
                stream.cast(),
            )
        }
        .map_err(|CublasError(status)| product.error(format!("{status:?}")))
    }

    fn lock(&self) -> MutexGuard<'_, Library> {
        // A thread that panicked leaves the plans whole: they are inserted in one piece.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is behind the lock.
struct Library {
    /// None where the library has no algorithm.
    plans: HashMap<Product, Option<Plan>>,
    handle: Owned<sys::cublasLtContext>,
}

impl Library {
    fn plan(&mut self, product: Product) -> Result<Option<&Plan>> {
        let plan = match self.plans.entry(product) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Plan::new(&self.handle, product)?),
        };
        Ok(plan.as_ref())
    }
}

/// All that chooses an algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Product {
    direction: Direction,
    sizes: Fc,
    operands: Operands,
}

impl Product {
    fn error(self, reason: impl fmt::Display) -> Error {
        let Product { direction, sizes: Fc { n, k, d }, operands } = self;
        Error::Backend(format!(
            "cuBLASLt, {direction:?} of a fully connected layer, n = {n}, k = {k}, d = {d}, \
             {operands:?}: {reason}"
        ))
    }
}

/// A product's descriptors and its algorithm.
struct Plan {
    operation: Owned<sys::cublasLtMatmulDescOpaque_t>,
    a: Owned<sys::cublasLtMatrixLayoutOpaque_t>,
    b: Owned<sys::cublasLtMatrixLayoutOpaque_t>,
    /// Of D, and of C, which is the same.
    d: Owned<sys::cublasLtMatrixLayoutOpaque_t>,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Bytes that the algorithm needs.
    workspace: usize,
}

impl Plan {
    /// Asks the heuristic. None if it knows no algorithm.
    fn new(handle: &Owned<sys::cublasLtContext>, product: Product) -> Result<Option<Self>> {
        Self::ask(handle, product)
            .map_err(|CublasError(status)| product.error(format!("{status:?}")))
    }

    fn ask(
        handle: &Owned<sys::cublasLtContext>,
        product: Product,
    ) -> Result<Option<Self>, CublasError> {
        use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
        use sys::cublasLtMatmulDescAttributes_t::*;
        use sys::cublasLtMatmulPreferenceAttributes_t::*;
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};

        let Product { direction, sizes: Fc { n, k, d }, operands } = product;
        let (compute, operand) = match operands {
            Operands::F32 => (CUBLAS_COMPUTE_32F, CUDA_R_32F),
            Operands::Tf32 => (CUBLAS_COMPUTE_32F_FAST_TF32, CUDA_R_32F),
            Operands::Bf16 => (CUBLAS_COMPUTE_32F, CUDA_R_16BF),
        };
        // Sizes as the library sees them, rows first; see the table at the head of this file.
        let (a, op_a, b, op_b, c, result_type) = match direction {
            Direction::Forward => ([d, k], CUBLAS_OP_T, [d, n], CUBLAS_OP_N, [k, n], CUDA_R_32F),
            Direction::BackwardData => ([d, k], CUBLAS_OP_N, [k, n], CUBLAS_OP_N, [d, n], operand),
            Direction::BackwardFilter => {
                ([d, n], CUBLAS_OP_N, [k, n], CUBLAS_OP_T, [d, k], CUDA_R_32F)
            }
        };
        let layout = |data_type, [rows, columns]: [usize; 2]| {
            let raw =
                result::create_matrix_layout(data_type, rows as u64, columns as u64, rows as i64)?;
            Ok(Owned { raw, destroy: result::destroy_matrix_layout })
        };
        let (a, b, d) = (layout(operand, a)?, layout(operand, b)?, layout(result_type, c)?);

        let raw = result::create_matmul_desc(compute, CUDA_R_32F)?;
        let operation = Owned { raw, destroy: result::destroy_matmul_desc };
        for (attribute, op) in
            [(CUBLASLT_MATMUL_DESC_TRANSA, op_a), (CUBLASLT_MATMUL_DESC_TRANSB, op_b)]
        {
            set(result::set_matmul_desc_attribute, &operation, attribute, op)?;
        }

        let raw = result::create_matmul_pref()?;
        let preference = Owned { raw, destroy: result::destroy_matmul_pref };
        let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        let prefer = result::set_matmul_pref_attribute;
        set(prefer, &preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        set(prefer, &preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme as u32)?;
        for attribute in [
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            set(prefer, &preference, attribute, ALIGNMENT as u32)?;
        }

        // SAFETY: all descriptors were created above and live until the end of this function.
        let best = unsafe {
            result::get_matmul_algo_heuristic(
                handle.raw,
                operation.raw,
                a.raw,
                b.raw,
                d.raw,
                d.raw,
                preference.raw,
            )
        };
        match best {
            Ok(best) => {
                let (algorithm, workspace) = (best.algo, best.workspaceSize);
                Ok(Some(Plan { operation, a, b, d, algorithm, workspace }))
            }
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A handle or descriptor of the library, destroyed with its owner.
struct Owned<T> {
    raw: *mut T,
    destroy: unsafe fn(*mut T) -> Result<(), CublasError>,
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `raw` comes from the function that creates what `destroy` destroys, and from here
        // on nobody has it. A failure cannot be helped.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

// SAFETY: the library is thread-safe and ties nothing to the thread that created it; only the owner
// of an `Owned`, behind the lock of `Blas`, uses what it points to.
unsafe impl<T> Send for Owned<T> {}

/// Sets an attribute whose value is of type `V`: the size that the library checks.
fn set<T, A, V>(
    set_attribute: unsafe fn(*mut T, A, *const c_void, usize) -> Result<(), CublasError>,
    of: &Owned<T>,
    attribute: A,
    value: V,
) -> Result<(), CublasError> {
    // SAFETY: the descriptor is alive, and the library copies `size_of::<V>()` bytes of the value.
    unsafe { set_attribute(of.raw, attribute, (&raw const value).cast(), size_of::<V>()) }
}
