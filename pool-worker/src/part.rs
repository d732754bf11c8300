//! Parts of values that are encoded in a special way, at any depth, instead of as their types would do it.
//!
//! A path may contain any bytes, but serde refuses one that is not UTF-8. Here it is written as bytes, in the encoding of
//! text. And the types that only ipc-channel can send are refused: they would be written as a number that is of no use
//! without the descriptor that belongs to it.
//!
//! Serializers see the type of each part. Since that may contain lifetimes, it is identified by its [`typeid`].

use std::any::{TypeId, type_name};
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::ser;

/// Whether only ipc-channel can send the type. The compiler can evaluate this.
#[inline]
pub(crate) fn is_not_ours<T: ?Sized>() -> bool {
    // serde passes elements by reference.
    let name = type_name::<T>();
    name.starts_with("ipc_channel::ipc::") || name.starts_with("&ipc_channel::ipc::")
}

/// The error about such a type. Return it before the type's own `serialize` runs, which has side effects.
#[cold]
pub(crate) fn refusal<T: ?Sized, E: ser::Error>() -> E {
    let name = type_name::<T>().trim_start_matches('&');
    E::custom(format_args!(
        "`{name}` can only be sent over a channel of ipc-channel: use `pool_core::channel`, whose `Sender` can be passed to \
         tasks"
    ))
}

/// The text of an error; with advice, if it is about a path inside a type that does not pass it on as a part.
pub(crate) fn explained(why: String) -> String {
    if why == "path contains invalid UTF-8 characters" {
        return format!(
            "{why}, and the type around it serializes the path itself: use an `OsString`, which may contain any bytes"
        );
    }
    why
}

/// Whether this part is not written as its type would do it.
pub(crate) fn is_special<T: ?Sized>(value: &T) -> bool {
    is_not_ours::<T>() || odd_path(value).is_some()
}

/// Returns `value` if it is a path that serde refuses.
pub(crate) fn odd_path<T: ?Sized>(value: &T) -> Option<&OsStr> {
    path(value)
        .filter(|path| path.to_str().is_none())
        .map(Path::as_os_str)
}

/// Returns `value` if it is one of the types that serde writes as a `Path`, or a reference to one, as serde passes the
/// elements of sequences and maps.
fn path<T: ?Sized>(value: &T) -> Option<&Path> {
    let is = typeid::of::<T>();
    macro_rules! seen {
        ($($path:ty)*) => {$(
            if is == TypeId::of::<$path>() {
                // SAFETY: they are the same type except for lifetimes, and the result lives no longer than `value`.
                return Some(unsafe { seen_as::<T, $path>(value) });
            }
            if is == TypeId::of::<&$path>() {
                // SAFETY: as above.
                return Some(unsafe { seen_as::<T, &$path>(value) });
            }
        )*};
    }
    seen! { Path PathBuf Box<Path> Rc<Path> Arc<Path> Cow<'static, Path> }
    None
}

/// # Safety
///
/// `T` and `U` are the same type except for lifetimes, and those of `U` are no longer than those of `T`.
unsafe fn seen_as<T: ?Sized, U: ?Sized>(value: &T) -> &U {
    // SAFETY: they are references to the same type.
    unsafe { mem::transmute_copy::<&T, &U>(&value) }
}

/// Whether this is serde's own visitor for a `PathBuf`.
#[inline]
pub(crate) fn is_path<'de, V: Visitor<'de>>() -> bool {
    // A user's visitor may also make a `PathBuf`, and must get what it asks for.
    typeid::of::<V::Value>() == TypeId::of::<PathBuf>() && type_name::<V>().starts_with("serde")
}

/// Makes a path from text, as the inner visitor does, or from bytes that are not UTF-8.
pub(crate) struct OddPath<V>(pub(crate) V);

impl<'de, V: Visitor<'de>> Visitor<'de> for OddPath<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<V::Value, E> {
        self.0.visit_str(text)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<V::Value, E> {
        match str::from_utf8(bytes) {
            Ok(text) => self.0.visit_str(text),
            Err(_) => made::<V>(bytes).ok_or_else(|| E::custom("it is not valid UTF-8")),
        }
    }
}

fn made<'de, V: Visitor<'de>>(bytes: &[u8]) -> Option<V::Value> {
    is_path::<V>().then(|| {
        let path = ManuallyDrop::new(PathBuf::from(OsStr::from_bytes(bytes)));
        // SAFETY: they are the same type, and the original is not dropped.
        unsafe { mem::transmute_copy::<ManuallyDrop<PathBuf>, V::Value>(&path) }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use serde::{Deserialize, Serialize};

    use crate::codec::{decode, decode_msgpack, encode, encode_msgpack};

    use super::*;

    fn odd() -> &'static Path {
        Path::new(OsStr::from_bytes(b"not \xff text"))
    }

    /// Checks that the value is the same after encoding and decoding, in both formats.
    fn travels<T>(value: &T)
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + fmt::Debug,
    {
        let mut bytes = Vec::new();
        encode(value, &mut bytes).expect("it can be encoded");
        assert_eq!(decode::<T>(&bytes).as_ref(), Ok(value));
        bytes.clear();
        encode_msgpack(value, &mut bytes).expect("it can be encoded");
        assert_eq!(decode_msgpack::<T>(&bytes).as_ref(), Ok(value));
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New(PathBuf);

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Any {
        New(PathBuf),
        Two(PathBuf, PathBuf),
        Named { of: PathBuf },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Everything {
        path: PathBuf,
        maybe: Option<PathBuf>,
        result: Result<PathBuf, PathBuf>,
        many: Vec<PathBuf>,
        map: BTreeMap<PathBuf, PathBuf>,
        tuple: (u8, PathBuf, [PathBuf; 2]),
        boxed: Box<Path>,
        cow: Cow<'static, Path>,
        any: Vec<Any>,
        new: New,
    }

    fn everything(path: &Path) -> Everything {
        let path = || path.to_path_buf();
        Everything {
            path: path(),
            maybe: Some(path()),
            result: Err(path()),
            many: vec![path(), "text".into()],
            map: BTreeMap::from([(path(), path())]),
            tuple: (1, path(), [path(), path()]),
            boxed: path().into(),
            cow: path().into(),
            any: vec![
                Any::New(path()),
                Any::Two(path(), path()),
                Any::Named { of: path() },
            ],
            new: New(path()),
        }
    }

    #[test]
    fn a_path_with_any_bytes_is_sent_at_any_depth() {
        travels(&odd().to_path_buf());
        travels(&everything(odd()));
        travels(&everything(Path::new("text")));
        travels(&everything(Path::new("")));
    }

    #[test]
    fn a_lent_path_is_encoded_like_an_owned_one() {
        let (mut lent, mut given) = (Vec::new(), Vec::new());
        encode(odd(), &mut lent).expect("it can be encoded");
        encode(&odd().to_path_buf(), &mut given).expect("it can be encoded");
        assert_eq!(lent, given);
    }

    #[test]
    fn a_path_that_its_type_serializes_itself_is_refused_with_advice() {
        let hidden = Mutex::new(odd().to_path_buf());
        for error in [
            encode(&hidden, &mut Vec::new()),
            encode_msgpack(&hidden, &mut Vec::new()),
        ] {
            let error = error.expect_err("it is refused").to_string();
            assert!(
                error.starts_with("path contains invalid UTF-8 characters"),
                "{error}"
            );
            assert!(error.contains("`OsString`"), "{error}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_still_refused() {
        let mut bytes = Vec::new();
        encode(odd(), &mut bytes).expect("it can be encoded");
        decode::<String>(&bytes).expect_err("it is not text");
        #[derive(Debug)]
        struct Own;
        impl<'de> Deserialize<'de> for Own {
            fn deserialize<D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Look;
                impl Visitor<'_> for Look {
                    type Value = PathBuf;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("text")
                    }
                }
                from.deserialize_string(Look).map(|_| Own)
            }
        }
        decode::<Own>(&bytes).expect_err("its visitor takes nothing");
    }

    #[test]
    fn types_of_ipc_channel_are_refused_before_they_are_serialized() {
        let (sender, receiver) = ipc_channel::ipc::channel::<u8>().expect("a channel");
        #[derive(Serialize)]
        struct Holds<T>(u8, Option<T>);
        let holds = Holds(1, Some((2, receiver)));
        for error in [
            encode(&sender, &mut Vec::new()),
            encode_msgpack(&sender, &mut Vec::new()),
            encode(&vec![sender.clone()], &mut Vec::new()),
            encode_msgpack(&vec![sender.clone()], &mut Vec::new()),
            encode(&holds, &mut Vec::new()),
            encode_msgpack(&holds, &mut Vec::new()),
        ] {
            let error = error.expect_err("it is refused").to_string();
            assert!(error.contains("`pool_core::channel`"), "{error}");
        }
        // The channel still works.
        sender.send(7).expect("it is open");
        let Holds(_, Some((_, receiver))) = holds else {
            unreachable!("it was put there");
        };
        assert_eq!(receiver.recv().expect("it is open"), 7);
    }
}
