//! Encoding in one pass: postcard writes the bytes, and values that it would get wrong are refused on the way.
//!
//! postcard keeps only the kind of an error, but a user should see a message such as "path contains invalid UTF-8
//! characters". And postcard ignores that a field is skipped (`skip_serializing_if`), after which the other side
//! would read something other than what was written. So this serializer is in front of postcard's: postcard writes
//! numbers and strings, and the structures around them are walked through here. So it sees every part of a value
//! (`part.rs`).

use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;

use postcard::Serializer;
use postcard::ser_flavors::Flavor;
use serde::de::value::Error;
use serde::ser::{
    self, Error as _, Serialize, SerializeMap, SerializeSeq, SerializeStruct,
    SerializeStructVariant, SerializeTuple, SerializeTupleStruct, SerializeTupleVariant,
};

use crate::part;

/// Appends `value` to `out`, or returns the message of the first part that fails. In that case `out` contains the parts
/// before it.
#[inline]
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), String> {
    let mut postcard = Serializer {
        output: Append(out),
    };
    part(value, &mut Encoder(&mut postcard)).map_err(|error| part::explained(error.to_string()))
}

/// Writes a part of a value, or all of it. A path is looked for only after serde has refused the part, so that nothing
/// else pays for that. (It is inlined into every level, since a deep value would otherwise take more of the stack in an
/// unoptimized build.)
#[inline(always)]
fn part<T: Serialize + ?Sized>(value: &T, encoder: &mut Encoder<'_, '_>) -> Result<(), Error> {
    if part::is_not_ours::<T>() {
        return Err(part::refusal::<T, _>());
    }
    match value.serialize(encoder.again()) {
        Ok(()) => Ok(()),
        Err(error) => refused(value, error, encoder),
    }
}

#[cold]
fn refused<T: ?Sized>(value: &T, error: Error, encoder: &mut Encoder<'_, '_>) -> Result<(), Error> {
    match part::odd_path(value) {
        Some(path) => ser::Serializer::serialize_bytes(encoder.again(), path.as_bytes()),
        None => Err(error),
    }
}

/// Advice for values that postcard can't encode.
pub(crate) const OTHER: &str = "use `#[pool_task(format = \"msgpack\")]`";

/// postcard's own flavors take a vector by value or write byte by byte; this one does neither.
struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

struct Encoder<'a, 'b>(&'a mut Serializer<Append<'b>>);

impl<'b> Encoder<'_, 'b> {
    fn again(&mut self) -> Encoder<'_, 'b> {
        Encoder(self.0)
    }

    /// Writes a number as postcard does (also lengths and variants): seven bits per byte, the lowest first. Most
    /// numbers are short, and pushing a byte is faster than copying from a buffer.
    #[inline]
    fn number(&mut self, mut number: u64) -> Result<(), Error> {
        let out = &mut *self.0.output.0;
        while number >= 0x80 {
            out.push(number as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
        Ok(())
    }

    /// Writes a length, which comes first in postcard, so it must be known.
    fn known(&mut self, len: Option<usize>, what: &str) -> Result<(), Error> {
        match len {
            Some(len) => self.number(len as u64),
            None => Err(Error::custom(format!(
                "a {what} whose length is not known in advance (for example from `#[serde(flatten)]`): {OTHER}"
            ))),
        }
    }
}

macro_rules! postcards {
    ($($method:ident($type:ty);)*) => {
        $(#[inline]
        fn $method(self, value: $type) -> Result<(), Error> {
            ser::Serializer::$method(self.0, value).map_err(Error::custom)
        })*
    };
}

macro_rules! without_a_trace {
    ($($method:ident($($argument:ty),*);)*) => {
        $(#[inline]
        fn $method(self, $(_: $argument),*) -> Result<Self, Error> {
            Ok(self)
        })*
    };
}

impl ser::Serializer for Encoder<'_, '_> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    postcards! {
        serialize_bool(bool);
        serialize_i8(i8);
        serialize_i16(i16);
        serialize_i32(i32);
        serialize_i64(i64);
        serialize_i128(i128);
        serialize_u8(u8);
        serialize_u128(u128);
        serialize_f32(f32);
        serialize_f64(f64);
        serialize_char(char);
        serialize_str(&str);
        serialize_bytes(&[u8]);
    }

    #[inline]
    fn serialize_u16(mut self, value: u16) -> Result<(), Error> {
        self.number(value.into())
    }

    #[inline]
    fn serialize_u32(mut self, value: u32) -> Result<(), Error> {
        self.number(value.into())
    }

    #[inline]
    fn serialize_u64(mut self, value: u64) -> Result<(), Error> {
        self.number(value)
    }

    without_a_trace! {
        serialize_tuple(usize);
        serialize_tuple_struct(&'static str, usize);
        serialize_struct(&'static str, usize);
    }

    fn serialize_none(self) -> Result<(), Error> {
        ser::Serializer::serialize_none(self.0).map_err(Error::custom)
    }

    fn serialize_some<T: Serialize + ?Sized>(mut self, value: &T) -> Result<(), Error> {
        self.0.output.try_push(1).map_err(Error::custom)?;
        part(value, &mut self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_unit_variant(
        mut self,
        _: &'static str,
        variant: u32,
        _: &'static str,
    ) -> Result<(), Error> {
        self.number(variant.into())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        mut self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        part(value, &mut self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        mut self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.number(variant.into())?;
        part(value, &mut self)
    }

    fn serialize_tuple_variant(
        mut self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Error> {
        self.number(variant.into())?;
        Ok(self)
    }

    fn serialize_struct_variant(
        mut self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Error> {
        self.number(variant.into())?;
        Ok(self)
    }

    fn serialize_seq(mut self, len: Option<usize>) -> Result<Self, Error> {
        self.known(len, "sequence")?;
        Ok(self)
    }

    fn serialize_map(mut self, len: Option<usize>) -> Result<Self, Error> {
        self.known(len, "map")?;
        Ok(self)
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), Error> {
        ser::Serializer::collect_str(self.0, value).map_err(Error::custom)
    }

    fn is_human_readable(&self) -> bool {
        // As in postcard.
        false
    }
}

macro_rules! elements {
    ($($of:ident: $method:ident;)*) => {
        $(impl $of for Encoder<'_, '_> {
            type Ok = ();
            type Error = Error;
            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                part(value, self)
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
        $(impl $of for Encoder<'_, '_> {
            type Ok = ();
            type Error = Error;
            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                _: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                part(value, self)
            }
            fn skip_field(&mut self, key: &'static str) -> Result<(), Error> {
                Err(Error::custom(format!(
                    "field `{key}` is skipped (`#[serde(skip_serializing_if)]`), but this format \
                     does not say which fields there are: {OTHER}"
                )))
            }
            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        })*
    };
}

fields! { SerializeStruct SerializeStructVariant }

impl SerializeMap for Encoder<'_, '_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        part(key, self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        part(value, self)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::codec::{decode, encode};

    #[derive(serde::Serialize)]
    enum Deep {
        Variant {
            map: BTreeMap<u8, Option<(u8, Vec<SystemTime>)>>,
        },
    }

    #[test]
    fn the_message_of_a_deep_part_is_returned() {
        let start = SystemTime::UNIX_EPOCH;
        let before = start - Duration::from_secs(1);
        let deep = Deep::Variant {
            map: BTreeMap::from([(1, Some((2, vec![start, before])))]),
        };
        let error = encode(&deep, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("must be later than UNIX_EPOCH"), "{error}");
    }

    #[test]
    fn a_skipped_field_is_an_error() {
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
        assert!(error.starts_with("field `level` is skipped"), "{error}");
    }

    #[test]
    fn an_unknown_length_is_an_error() {
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

    #[test]
    fn the_bytes_are_postcards() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        enum Shape {
            Unit,
            Newtype(i16),
            Tuple(u8, Option<String>),
            Struct {
                at: (f32, f64),
                by: BTreeMap<String, Vec<i128>>,
            },
        }
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct All {
            shapes: Vec<Shape>,
            letter: char,
            yes: bool,
            nothing: (),
            none: Option<u64>,
            address: std::net::IpAddr,
        }
        let all = All {
            shapes: vec![
                Shape::Unit,
                Shape::Newtype(-300),
                Shape::Tuple(7, Some("seven".to_owned())),
                Shape::Struct {
                    at: (0.5, -2.25),
                    by: BTreeMap::from([("one".to_owned(), vec![1, -1, i128::MAX])]),
                },
            ],
            letter: 'ß',
            yes: true,
            nothing: (),
            none: None,
            address: [127, 0, 0, 1].into(),
        };
        let mut bytes = Vec::new();
        encode(&all, &mut bytes).unwrap();
        assert_eq!(bytes, postcard::to_stdvec(&all).unwrap());
        assert_eq!(decode::<All>(&bytes).unwrap(), all);
    }
}
