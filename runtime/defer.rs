//! What is done at the end of a block, also where a panic ends it: Go's `defer`.

/// Does `f` when what it returns is dropped.
pub(crate) fn defer(f: impl FnMut()) -> impl Drop {
    struct Deferred<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Deferred<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Deferred(f)
}
