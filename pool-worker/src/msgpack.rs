//! Encoding in MessagePack, a self-describing format: a serializer in front of rmp-serde, which sees every part of a
//! value.

use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;

use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use crate::part;

// The functions between one level of a value and the next are always inlined. Otherwise a deep value would take twice
// the stack in an unoptimized build.

/// Appends `value` to `out`, structs with their field names; or returns the message of the first part that fails. In
/// that case `out` contains the parts before it.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), String> {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
    let encoded = Part(value).serialize(&mut serializer);
    encoded.map_err(|error| match error {
        // The message of a type.
        rmp_serde::encode::Error::Syntax(why) => part::explained(why),
        error => error.to_string(),
    })
}

/// A part of a value, or all of it.
struct Part<'a, T: ?Sized>(&'a T);

impl<T: Serialize + ?Sized> Serialize for Part<'_, T> {
    #[inline(always)]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if part::is_special(self.0) {
            return special(self.0, serializer);
        }
        self.0.serialize(InParts(serializer))
    }
}

#[cold]
fn special<T: ?Sized, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    match part::odd_path(value) {
        Some(path) => serializer.serialize_bytes(path.as_bytes()),
        None => Err(part::refusal::<T, S::Error>()),
    }
}

/// A serializer, of a whole value or of the parts of one, that passes the parts on as [`Part`]s.
struct InParts<S>(S);

macro_rules! as_it_is {
    ($($method:ident($($name:ident: $type:ty),*))*) => {$(
        fn $method(self, $($name: $type),*) -> Result<S::Ok, S::Error> {
            self.0.$method($($name),*)
        }
    )*};
}

macro_rules! in_parts {
    ($($method:ident($($name:ident: $type:ty),*) -> $parts:ident)*) => {$(
        fn $method(self, $($name: $type),*) -> Result<InParts<S::$parts>, S::Error> {
            self.0.$method($($name),*).map(InParts)
        }
    )*};
}

impl<S: Serializer> Serializer for InParts<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = InParts<S::SerializeSeq>;
    type SerializeTuple = InParts<S::SerializeTuple>;
    type SerializeTupleStruct = InParts<S::SerializeTupleStruct>;
    type SerializeTupleVariant = InParts<S::SerializeTupleVariant>;
    type SerializeMap = InParts<S::SerializeMap>;
    type SerializeStruct = InParts<S::SerializeStruct>;
    type SerializeStructVariant = InParts<S::SerializeStructVariant>;

    as_it_is! {
        serialize_bool(value: bool)
        serialize_i8(value: i8) serialize_i16(value: i16) serialize_i32(value: i32)
        serialize_i64(value: i64) serialize_i128(value: i128)
        serialize_u8(value: u8) serialize_u16(value: u16) serialize_u32(value: u32)
        serialize_u64(value: u64) serialize_u128(value: u128)
        serialize_f32(value: f32) serialize_f64(value: f64)
        serialize_char(value: char) serialize_str(value: &str) serialize_bytes(value: &[u8])
        serialize_none() serialize_unit() serialize_unit_struct(name: &'static str)
        serialize_unit_variant(name: &'static str, index: u32, variant: &'static str)
    }

    in_parts! {
        serialize_seq(len: Option<usize>) -> SerializeSeq
        serialize_tuple(len: usize) -> SerializeTuple
        serialize_tuple_struct(name: &'static str, len: usize) -> SerializeTupleStruct
        serialize_tuple_variant(name: &'static str, index: u32, variant: &'static str, len: usize)
            -> SerializeTupleVariant
        serialize_map(len: Option<usize>) -> SerializeMap
        serialize_struct(name: &'static str, len: usize) -> SerializeStruct
        serialize_struct_variant(name: &'static str, index: u32, variant: &'static str, len: usize)
            -> SerializeStructVariant
    }

    #[inline(always)]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Part(value))
    }

    #[inline(always)]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Part(value))
    }

    #[inline(always)]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0
            .serialize_newtype_variant(name, index, variant, &Part(value))
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! elements {
    ($($of:ident: $method:ident;)*) => {$(
        impl<S: $of> $of for InParts<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            #[inline(always)]
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                self.0.$method(&Part(value))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        }
    )*};
}

elements! {
    SerializeSeq: serialize_element;
    SerializeTuple: serialize_element;
    SerializeTupleStruct: serialize_field;
    SerializeTupleVariant: serialize_field;
}

macro_rules! fields {
    ($($of:ident)*) => {$(
        impl<S: $of> $of for InParts<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            #[inline(always)]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), S::Error> {
                self.0.serialize_field(key, &Part(value))
            }

            fn skip_field(&mut self, key: &'static str) -> Result<(), S::Error> {
                self.0.skip_field(key)
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        }
    )*};
}

fields! { SerializeStruct SerializeStructVariant }

impl<S: SerializeMap> SerializeMap for InParts<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    #[inline(always)]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(&Part(key))
    }

    #[inline(always)]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Part(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}
