//! The pool beside its peers. The measurements are the bench `pool`, which begins in `main.rs`.
