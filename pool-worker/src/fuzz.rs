//! The code that reads data from another process, fuzzed with arbitrary data.
//!
//! Each function here runs one fuzz input. The inputs come from libFuzzer (`fuzz/`), and a test runs the saved ones.
//! No input may cause a panic. `fuzz/src/lib.rs` limits the time and memory that one may take.

mod frames;
mod replies;
mod values;

use crate::entry::Call;

pub use frames::frames;
pub use replies::{racing, replies};
pub use values::values;

/// The call that a worker reads from its environment.
pub fn calls(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Some(call) = Call::from_variable(text) {
        assert_eq!(Call::from_variable(&call.to_variable()), Some(call));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic;
    use std::path::Path;

    /// Runs the corpus of a target. (A packaged crate has none; it is recognized by the `Cargo.toml.orig` that Cargo
    /// adds.)
    fn digest(target: &str, run: fn(&[u8])) {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        if here.join("Cargo.toml.orig").exists() {
            return;
        }
        let corpus = here.join("../fuzz/corpus").join(target);
        let files = fs::read_dir(&corpus).expect("there is a corpus");
        let mut count = 0;
        for file in files {
            let path = file.expect("it can be listed").path();
            let input = fs::read(&path).expect("it can be read");
            let outcome = panic::catch_unwind(|| run(&input));
            assert!(outcome.is_ok(), "{}", path.display());
            count += 1;
        }
        assert!(count > 0, "nothing in {}", corpus.display());
    }

    macro_rules! targets {
        ($($target:ident)*) => {$(
            #[test]
            fn $target() {
                digest(stringify!($target), super::$target);
            }
        )*};
    }

    targets! { replies racing frames values calls }
}
