//! One file below `shaders/`.

/// One piece of WGSL text; a kernel's module is its fragments joined with newlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Path below `shaders/`.
    pub path: &'static str,
    /// The text of the file.
    pub text: &'static str,
}

/// Returns the [`Fragment`] of a file below `shaders/`.
macro_rules! fragment {
    ($path:literal) => {
        $crate::kernels::Fragment {
            path: $path,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)),
        }
    };
}
pub(crate) use fragment;
