//! Tells the compiler what hardly ever happens.

/// In a branch: it hardly ever happens, and its code is to lie apart, so that what does happen fills fewer cache lines. After
/// each system call most of those have to be fetched anew. (`std::hint::cold_path` is not in the oldest Rust that gopark takes.)
#[cold]
#[inline]
pub(crate) fn rare() {}
