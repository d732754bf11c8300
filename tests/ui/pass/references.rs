//! References: the caller's side of each owns its data.

use std::borrow::Cow;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::path::{Path, PathBuf};

use pool_core::{Task, pool_task};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Row(u32);

#[pool_task]
fn all(
    text: &str,
    bytes: &[u8],
    rows: &[Row],
    row: &Row,
    string: &String,
    vector: &Vec<u8>,
    file: &Path,
    name: &OsStr,
    c: &CStr,
    wide: &std::path::Path,
) -> (usize, Cow<'static, str>) {
    let length = text.len() + bytes.len() + rows.len() + row.0 as usize + string.len();
    let more = vector.len() + file.as_os_str().len() + name.len() + c.to_bytes().len();
    (length + more + wide.as_os_str().len(), Cow::Borrowed("all"))
}

type Args = (
    String,
    Vec<u8>,
    Vec<Row>,
    Row,
    String,
    Vec<u8>,
    PathBuf,
    OsString,
    CString,
    PathBuf,
);

/// What a user calls `Path` need not be that of `std`.
mod curves {
    use super::{Deserialize, Serialize};

    #[derive(Clone, Serialize, Deserialize)]
    pub struct Path(pub f64);

    #[pool_core::pool_task]
    pub fn length(path: &Path) -> f64 {
        path.0
    }
}

macro_rules! typed {
    ($name:ident, $ty:ty) => {
        #[pool_task]
        fn $name(value: $ty) -> usize {
            value.len()
        }
    };
}

typed!(through_a_macro, &str);

fn main() {
    let args = || -> Args {
        let c = CString::new("c").unwrap();
        let (text, path) = (String::from("a"), PathBuf::from("b"));
        (
            text.clone(),
            vec![1],
            vec![Row(1)],
            Row(1),
            text,
            vec![1],
            path.clone(),
            "n".into(),
            c,
            path,
        )
    };
    // Both are the same type, or this would not compile.
    let _: fn() -> <all as Task>::Args = args;
    let a = args();
    let found = all(&a.0, &a.1, &a.2, &a.3, &a.4, &a.5, &a.6, &a.7, &a.8, &a.9);
    assert_eq!(found, (10, Cow::Borrowed("all")));

    let _: <curves::length as Task>::Args = (curves::Path(1.0),);
    assert_eq!(curves::length(&curves::Path(1.0)), 1.0);

    let _: <through_a_macro as Task>::Args = (String::from("text"),);
    assert_eq!(through_a_macro("text"), 4);
}
