//! Decoding without harm: bytes that lie make an error, and neither overflow the stack nor keep a thread busy.
//!
//! postcard reads no more than there is, but asks a type for as many levels, and as many elements, as the bytes say. A
//! recursive type takes a level for each byte, and elements that take no bytes (`()`) can be any number. So a
//! deserializer stands in front, which measures the stack that was used and adds up the elements that were announced. As
//! it sees every error, it also keeps the text of those that types make; postcard's own errors have no room for it.
//! MessagePack (rmp-serde) has elements of a byte at least, but is asked for levels all the same.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use crate::encode::OTHER;
use crate::part;

/// A thread of Rust's has 2 MiB.
pub const STACK_DEFAULT: usize = 1 << 20;

/// So many elements may there be without any bytes for them.
const EMPTY_ELEMENTS: usize = 1 << 20;

/// One of so many bytes in memory counts as two such, for it may take no others (`#[serde(skip)]`).
const LARGE: usize = 32;

/// Takes a value off the front of `bytes`. Gives what is left, too.
///
/// # Errors
///
/// Says why the bytes are no such value.
#[inline]
pub(crate) fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<(T, &'de [u8]), String> {
    let limits = Limits::new(bytes);
    let mut inner = postcard::Deserializer::from_bytes(bytes);
    T::deserialize(limits.guard(&mut inner))
        .and_then(|value| Ok((value, up(inner.finalize())?)))
        .map_err(why)
}

/// The same in MessagePack.
///
/// # Errors
///
/// Says why the bytes are no such value.
pub(crate) fn decode_msgpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), String> {
    let limits = Limits::new(bytes);
    let mut inner = rmp_serde::Deserializer::new(bytes);
    // The limit is that of the stack.
    inner.set_max_depth(usize::MAX);
    T::deserialize(limits.guard(&mut inner))
        .map(|value| (value, inner.into_inner()))
        .map_err(why)
}

fn why(Refused: Refused) -> String {
    WHY.take()
        .unwrap_or_else(|| "its type refuses it".to_owned())
}

thread_local! {
    /// A value may take so much of the stack while it is decoded, in bytes.
    static STACK: Cell<usize> = const { Cell::new(STACK_DEFAULT) };
}

/// From now on this thread decodes with another limit.
pub(crate) fn set_stack(limit: usize) {
    STACK.set(limit);
}

/// Decodes with another limit than is usual: so many bytes of the stack.
pub fn with_stack<R>(limit: usize, decode: impl FnOnce() -> R) -> R {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            STACK.set(self.0);
        }
    }
    let _restore = Restore(STACK.replace(limit));
    decode()
}

thread_local! {
    /// Why the value was refused that this thread decodes.
    static WHY: Cell<Option<String>> = const { Cell::new(None) };
}

/// A value could not be decoded. (Errors are handed up through every level, so they are nothing but that.)
#[derive(Debug)]
struct Refused;

/// Says nothing, for what there is to say was said when it was made.
impl fmt::Display for Refused {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    #[cold]
    fn custom<T: fmt::Display>(why: T) -> Self {
        say(why.to_string());
        Refused
    }
}

/// Through postcard, to where it was called.
#[inline]
fn down<T, E: de::Error>(result: Result<T, Refused>) -> Result<T, E> {
    result.map_err(E::custom)
}

#[inline]
fn up<T, E: de::Error>(result: Result<T, E>) -> Result<T, Refused> {
    result.map_err(|error| {
        say(error.to_string());
        Refused
    })
}

/// What [`Refused`] becomes in postcard, and in rmp-serde, which have no other way to hand it through.
const HANDED_THROUGH: [&str; 3] = ["", "Serde Deserialization Error", "uncategorized error: "];

/// The last error counts, for a type may get over one. Those that are handed through say nothing.
#[cold]
fn say(why: String) {
    if HANDED_THROUGH.contains(&&*why) {
        return;
    }
    let is_question = why == postcard::Error::WontImplement.to_string();
    WHY.set(Some(if is_question {
        format!(
            "the type asks what the bytes hold, which they do not say (`#[serde(untagged)]`, `#[serde(tag = \"…\")]`, \
             `serde_json::Value` and the like do that): {OTHER}"
        )
    } else {
        why
    }));
}

/// Where the stack has come to, about.
#[inline]
fn stack_pointer() -> usize {
    let here = 0_u8;
    (&raw const here).addr()
}

/// What is watched while one value is decoded.
struct Limits {
    /// Where the stack stood at the beginning.
    base: usize,
    /// How much of it may be taken.
    stack: usize,
    /// How many elements may be announced yet.
    elements: Cell<usize>,
}

impl Limits {
    #[inline]
    fn new(bytes: &[u8]) -> Limits {
        Limits {
            base: stack_pointer(),
            stack: STACK.get(),
            elements: Cell::new(bytes.len().saturating_add(EMPTY_ELEMENTS)),
        }
    }

    #[inline]
    fn guard<T>(&self, inner: T) -> Guarded<'_, T> {
        Guarded {
            inner,
            limits: self,
        }
    }

    #[inline]
    fn parts<V>(&self, visitor: V) -> Parts<'_, V> {
        Parts {
            visitor: self.guard(visitor),
            are_announced: false,
        }
    }

    /// One level down.
    #[inline]
    fn enter(&self) -> Result<(), Refused> {
        if self.base.abs_diff(stack_pointer()) > self.stack {
            return Err(de::Error::custom(format_args!(
                "it is nested too deep: decoding it takes more than {} KiB of stack \
                 (`PoolBuilder::decode_stack`)",
                self.stack >> 10
            )));
        }
        Ok(())
    }

    /// A sequence or a map announces its elements.
    #[inline]
    fn announce(&self, elements: usize) -> Result<(), Refused> {
        let Some(left) = self.elements.get().checked_sub(elements) else {
            return Err(de::Error::custom(
                "it has more elements than there are bytes for",
            ));
        };
        self.elements.set(left);
        Ok(())
    }
}

/// Something of postcard's or of serde's, with the limits.
struct Guarded<'l, T> {
    inner: T,
    limits: &'l Limits,
}

macro_rules! as_it_is {
    ($($method:ident($($name:ident: $type:ty),*))*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, Refused> {
            up(self.inner.$method($($name,)* visitor))
        }
    )*};
}

/// What has parts.
macro_rules! in_parts {
    ($($method:ident($($name:ident: $type:ty),*))*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, Refused> {
            self.limits.enter()?;
            let parts = self.limits.parts(visitor);
            up(self.inner.$method($($name,)* parts))
        }
    )*};
}

/// What a recursive type has in its circle, unless it reads itself as far as there are bytes.
macro_rules! one_level_down {
    ($($method:ident($($name:ident: $type:ty),*))*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, Refused> {
            self.limits.enter()?;
            let parts = Parts { are_announced: true, ..self.limits.parts(visitor) };
            up(self.inner.$method($($name,)* parts))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Guarded<'_, D> {
    type Error = Refused;

    as_it_is! {
        deserialize_bool()
        deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64()
        deserialize_char() deserialize_str()
        deserialize_bytes() deserialize_byte_buf()
        deserialize_unit() deserialize_identifier()
    }

    #[inline]
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        if part::is_path::<V>() {
            return up(self.inner.deserialize_bytes(part::OddPath(visitor)));
        }
        up(self.inner.deserialize_string(visitor))
    }

    in_parts! {
        deserialize_any()
        deserialize_ignored_any()
        deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str)
        deserialize_tuple(len: usize)
        deserialize_tuple_struct(name: &'static str, len: usize)
        deserialize_struct(name: &'static str, fields: &'static [&'static str])
    }

    one_level_down! {
        deserialize_option()
        deserialize_seq()
        deserialize_map()
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Who is given the parts of a value.
struct Parts<'l, V> {
    visitor: Guarded<'l, V>,
    /// Their number stands in the bytes.
    are_announced: bool,
}

impl<'l, V> Parts<'l, V> {
    /// Hands the parts over, with the limits.
    #[inline]
    fn hand<P, T, E: de::Error>(
        self,
        parts: P,
        over: impl FnOnce(V, Guarded<'l, P>) -> Result<T, Refused>,
    ) -> Result<T, E> {
        let Guarded { inner, limits } = self.visitor;
        down(over(inner, limits.guard(parts)))
    }

    #[inline]
    fn count<E: de::Error>(&self, elements: usize) -> Result<(), E> {
        let limits = self.visitor.limits;
        if self.are_announced {
            return down(limits.announce(elements));
        }
        Ok(())
    }
}

macro_rules! without_parts {
    ($($method:ident($type:ty))*) => {$(
        #[inline]
        fn $method<E: de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Parts<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.inner.expecting(f)
    }

    without_parts! {
        visit_bool(bool)
        visit_i8(i8) visit_i16(i16) visit_i32(i32) visit_i64(i64) visit_i128(i128)
        visit_u8(u8) visit_u16(u16) visit_u32(u32) visit_u64(u64) visit_u128(u128)
        visit_f32(f32) visit_f64(f64)
        visit_char(char) visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }

    #[inline]
    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.visitor.inner.visit_unit()
    }

    #[inline]
    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.visitor.inner.visit_none()
    }

    #[inline]
    fn visit_some<D>(self, part: D) -> Result<V::Value, D::Error>
    where
        D: Deserializer<'de>,
    {
        self.hand(part, V::visit_some)
    }

    #[inline]
    fn visit_newtype_struct<D>(self, part: D) -> Result<V::Value, D::Error>
    where
        D: Deserializer<'de>,
    {
        self.hand(part, V::visit_newtype_struct)
    }

    #[inline]
    fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<V::Value, A::Error> {
        let count = parts.size_hint();
        self.count(count.unwrap_or_default())?;
        // postcard tells no number for which there are no bytes.
        let inner = Elements {
            parts,
            are_counted: self.are_announced && count.is_none(),
        };
        self.hand(inner, V::visit_seq)
    }

    #[inline]
    fn visit_map<A: MapAccess<'de>>(self, parts: A) -> Result<V::Value, A::Error> {
        self.count(parts.size_hint().unwrap_or_default())?;
        self.hand(parts, V::visit_map)
    }

    #[inline]
    fn visit_enum<A: EnumAccess<'de>>(self, part: A) -> Result<V::Value, A::Error> {
        self.hand(part, V::visit_enum)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Guarded<'_, S> {
    type Value = S::Value;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        let Guarded { inner, limits } = self;
        down(inner.deserialize(limits.guard(value)))
    }
}

struct Elements<A> {
    parts: A,
    /// Each by itself, as it comes.
    are_counted: bool,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Guarded<'_, Elements<A>> {
    type Error = Refused;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        if self.inner.are_counted {
            self.limits.announce(1 + size_of::<S::Value>() / LARGE)?;
        }
        let seed = self.limits.guard(seed);
        up(self.inner.parts.next_element_seed(seed))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.parts.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Guarded<'_, A> {
    type Error = Refused;

    #[inline]
    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Refused> {
        let seed = self.limits.guard(seed);
        up(self.inner.next_key_seed(seed))
    }

    #[inline]
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        let seed = self.limits.guard(seed);
        up(self.inner.next_value_seed(seed))
    }

    #[inline]
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'l, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Guarded<'l, A> {
    type Error = Refused;
    type Variant = Guarded<'l, A::Variant>;

    #[inline]
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Guarded<'l, A::Variant>), Refused> {
        let Guarded { inner, limits } = self;
        let (value, variant) = up(inner.variant_seed(limits.guard(seed)))?;
        Ok((value, limits.guard(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Guarded<'_, A> {
    type Error = Refused;

    #[inline]
    fn unit_variant(self) -> Result<(), Refused> {
        up(self.inner.unit_variant())
    }

    #[inline]
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Refused> {
        let seed = self.limits.guard(seed);
        up(self.inner.newtype_variant_seed(seed))
    }

    #[inline]
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        let parts = self.limits.parts(visitor);
        up(self.inner.tuple_variant(len, parts))
    }

    #[inline]
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let parts = self.limits.parts(visitor);
        up(self.inner.struct_variant(fields, parts))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::thread;

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Chain {
        next: Option<Box<Chain>>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    enum Tree {
        Leaf,
        Branches(Vec<Tree>),
        Named { of: BTreeMap<u8, Tree> },
    }

    fn why<T: for<'de> Deserialize<'de> + fmt::Debug>(bytes: &[u8]) -> String {
        decode::<T>(bytes).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_is_nested_without_end_is_an_error() {
        // In a thread with the stack that Rust gives to threads.
        let decoding = thread::spawn(|| {
            for levels in [100_000, 50_000_000] {
                let mut chain = vec![1; levels];
                chain.push(0);
                for why in [
                    why::<Chain>(&chain),
                    why::<Tree>(&[1, 1].repeat(levels)),
                    why::<Tree>(&[2, 1, 7].repeat(levels)),
                ] {
                    assert!(why.contains("nested too deep"), "{why}");
                }
            }
        });
        decoding.join().expect("it does not end the thread");
    }

    /// It ends where the bytes do, and has nothing else in its circle but itself.
    #[test]
    fn what_gets_over_the_end_of_the_bytes_does_not_overflow_the_stack() {
        #[derive(Debug, Deserialize)]
        struct Endless {
            _number: u8,
            #[serde(deserialize_with = "if_any")]
            _next: Option<Box<Endless>>,
        }
        fn if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Box<Endless>>, D::Error> {
            Ok(Box::deserialize(from).ok())
        }
        let decoding = thread::spawn(|| {
            let (_, rest) = decode::<Endless>(&[1; 1_000_000])
                .map(|(value, rest)| (value, rest.len()))
                .expect("it gets over it");
            assert!(rest > 0);
        });
        decoding.join().expect("it does not end the thread");
    }

    #[test]
    fn what_is_nested_as_values_are_is_decoded() {
        let mut chain = Chain::default();
        for _ in 0..300 {
            let next = Some(Box::new(chain));
            chain = Chain { next };
        }
        let bytes = postcard::to_stdvec(&chain).expect("it can be encoded");
        let (decoded, rest) = decode::<Chain>(&bytes).expect("it is a chain");
        assert_eq!((decoded, rest), (chain, &[][..]));
    }

    #[test]
    fn elements_without_bytes_are_counted() {
        let announced = |count: u64| postcard::to_stdvec(&count).expect("it is a number");
        let (units, _) = decode::<Vec<()>>(&announced(1_000_000)).expect("they are not too many");
        assert_eq!(units.len(), 1_000_000);
        assert!(why::<Vec<()>>(&announced(1 << 60)).contains("more elements"));
        // Not by many sequences, either.
        let many = [announced(1000), announced(10_000).repeat(1000)].concat();
        assert!(why::<Vec<Vec<()>>>(&many).contains("more elements"));
    }

    #[test]
    fn elements_without_bytes_are_counted_by_their_size() {
        #[derive(Debug, Deserialize)]
        struct Cached {
            #[serde(skip)]
            cache: [u64; 32],
        }
        let announced = |count: u64| postcard::to_stdvec(&count).expect("it is a number");
        let (some, _) = decode::<Vec<Cached>>(&announced(100_000)).expect("they are not too many");
        assert_eq!((some.len(), some[7].cache), (100_000, [0; 32]));
        // They would take 256 MB.
        assert!(why::<Vec<Cached>>(&announced(1_000_000)).contains("more elements"));
    }

    #[test]
    fn what_a_type_says_is_told() {
        #[derive(Debug)]
        struct Picky;
        impl<'de> Deserialize<'de> for Picky {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let number = u8::deserialize(from)?;
                Err(de::Error::custom(format_args!(
                    "{number} is not to my taste"
                )))
            }
        }
        type Deep = Vec<(u8, Option<BTreeMap<u8, Picky>>)>;
        assert_eq!(why::<Deep>(&[1, 5, 1, 1, 2, 77]), "77 is not to my taste");
        // And nothing that was said of something else.
        assert!(why::<Deep>(&[1, 5, 1, 1, 2]).contains("end"));
        assert_eq!(decode::<u8>(&[7]).expect("it is a number").0, 7);
        assert!(
            why::<Deep>(&[1, 5, 2]).contains("Option"),
            "{}",
            why::<Deep>(&[1, 5, 2])
        );
    }
}
