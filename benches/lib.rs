//! The pool beside its peers. The measurements are in `table.rs`.
