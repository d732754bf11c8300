//! Whether a value can be encoded at all; and if not, why, in the words of its own `Serialize`.
//!
//! postcard keeps the kind of an error only, and a user who wrote "path contains invalid UTF-8
//! characters" deserves to see it. And it takes no notice of a field that is left out
//! (`skip_serializing_if`), after which the other side reads something else than was written. This
//! serializer writes nothing; it walks through the value until something fails. For numbers and
//! strings, and for vectors of them, the compiler makes nothing of it.

use std::fmt::Display;

use serde::de::value::Error;
use serde::ser::{
    self, Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct,
    SerializeStructVariant, SerializeTuple, SerializeTupleStruct, SerializeTupleVariant,
};

/// The message of the first part of `value` that fails.
pub(crate) fn check<T: Serialize + ?Sized>(value: &T) -> Result<(), String> {
    value.serialize(Walk).map_err(|error| error.to_string())
}

#[derive(Clone, Copy)]
struct Walk;

macro_rules! nothing_to_do {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<(), Error> {
            Ok(())
        })*
    };
}

macro_rules! walk_on {
    ($($method:ident($($argument:ty),*);)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<Walk, Error> {
            Ok(Walk)
        })*
    };
}

impl ser::Serializer for Walk {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Walk;
    type SerializeTuple = Walk;
    type SerializeTupleStruct = Walk;
    type SerializeTupleVariant = Walk;
    type SerializeMap = Walk;
    type SerializeStruct = Walk;
    type SerializeStructVariant = Walk;

    nothing_to_do! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u16(u16);
        serialize_u32(u32);
        serialize_u64(u64);
        serialize_u128(u128);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
        serialize_none();
        serialize_unit();
        serialize_unit_struct(&'static str);
        serialize_unit_variant(&'static str, u32, &'static str);
    }

    walk_on! {
        serialize_tuple(usize);
        serialize_tuple_struct(&'static str, usize);
        serialize_tuple_variant(&'static str, u32, &'static str, usize);
        serialize_struct(&'static str, usize);
        serialize_struct_variant(&'static str, u32, &'static str, usize);
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Walk, Error> {
        known(len, "sequence")
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Walk, Error> {
        known(len, "map")
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        value.serialize(self)
    }

    fn collect_str<T: Display + ?Sized>(self, _: &T) -> Result<(), Error> {
        Ok(())
    }

    fn is_human_readable(&self) -> bool {
        // As postcard.
        false
    }
}

/// postcard writes the length first.
fn known(len: Option<usize>, what: &str) -> Result<Walk, Error> {
    match len {
        Some(_) => Ok(Walk),
        None => Err(Error::custom(format!(
            "a {what} whose length is not known beforehand (from `#[serde(flatten)]`, say)"
        ))),
    }
}

macro_rules! elements {
    ($($of:ident: $method:ident;)*) => {
        $(impl $of for Walk {
            type Ok = ();
            type Error = Error;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                value.serialize(*self)
            }
            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        })*
    };
}

elements! {
    SerializeSeq: serialize_element;
    SerializeTuple: serialize_element;
    SerializeTupleStruct: serialize_field;
    SerializeTupleVariant: serialize_field;
}

macro_rules! fields {
    ($($of:ident)*) => {
        $(impl $of for Walk {
            type Ok = ();
            type Error = Error;
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                _: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                value.serialize(*self)
            }
            fn skip_field(&mut self, key: &'static str) -> Result<(), Error> {
                Err(Error::custom(format!(
                    "field `{key}` is left out (`#[serde(skip_serializing_if)]`), and the bytes do \
                     not tell which fields there are"
                )))
            }
            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        })*
    };
}

fields! { SerializeStruct SerializeStructVariant }

impl SerializeMap for Walk {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        key.serialize(*self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(*self)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;
    use crate::codec::encode;

    #[derive(serde::Serialize)]
    enum Deep<'a> {
        Variant {
            map: BTreeMap<u8, Option<(u8, Vec<&'a Path>)>>,
        },
    }

    #[test]
    fn a_message_is_found_however_deep_it_lies() {
        let path = Path::new(OsStr::from_bytes(b"not \xff text"));
        let deep = Deep::Variant {
            map: BTreeMap::from([(1, Some((2, vec![Path::new("text"), path])))]),
        };
        let error = encode(&deep, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "path contains invalid UTF-8 characters");
    }

    #[test]
    fn a_field_that_is_left_out_is_an_error() {
        #[derive(serde::Serialize)]
        struct Partly {
            #[serde(skip_serializing_if = "Option::is_none")]
            level: Option<u8>,
            size: u32,
        }
        let whole = Partly {
            level: Some(1),
            size: 300,
        };
        assert!(encode(&whole, &mut Vec::new()).is_ok());
        let partly = Partly {
            level: None,
            size: 300,
        };
        let error = encode(&partly, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with("field `level` is left out"), "{error}");
    }

    #[test]
    fn a_length_that_is_not_known_is_called_so() {
        struct Endless;
        impl Serialize for Endless {
            fn serialize<S: ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_seq(None)?.end()
            }
        }
        let mut out = vec![7];
        let error = encode(&Endless, &mut out).unwrap_err();
        assert!(error.to_string().contains("length is not known"), "{error}");
        assert_eq!(out, [7]);
    }
}
