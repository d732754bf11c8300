//! Safe decoding: malicious bytes cause an error; they can neither overflow the stack nor keep a thread busy.
//!
//! postcard never reads past the end, but it asks a type for as many levels, and as many elements, as the bytes say. A
//! recursive type can take a level for each byte, and there can be any number of elements that take no bytes (`()`). So
//! a deserializer in front of it measures the stack in use and counts the elements that were announced. Since it sees
//! every error, it also keeps the messages of errors from types, for which postcard's own errors have no room.
//! In MessagePack (rmp-serde), each element takes at least one byte, but the depth must be limited all the same.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use crate::encode::OTHER;
use crate::part;

/// How many bytes of the stack decoding may take by default. A Rust thread has 2 MiB.
pub const STACK_DEFAULT: usize = 1 << 20;

/// How many elements a value may have beyond the number of its bytes.
const EMPTY_ELEMENTS: usize = 1 << 20;

/// An element counts once more for each this many bytes of its size in memory, since its encoding may be empty all the
/// same (`#[serde(skip)]`).
const LARGE: usize = 32;

/// Takes a value from the front of `bytes`. Returns it and the bytes after it.
///
/// # Errors
///
/// The reason why the bytes are not such a value.
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
/// The reason why the bytes are not such a value.
pub(crate) fn decode_msgpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), String> {
    let limits = Limits::new(bytes);
    let mut inner = rmp_serde::Deserializer::new(bytes);
    // `Limits` limits the use of the stack instead.
    inner.set_max_depth(usize::MAX);
    T::deserialize(limits.guard(&mut inner))
        .map(|value| (value, inner.into_inner()))
        .map_err(why)
}

fn why(Refused: Refused) -> String {
    WHY.take()
        .unwrap_or_else(|| "its type rejects it".to_owned())
}

thread_local! {
    /// How many bytes of the stack decoding a value may take in this thread.
    static STACK: Cell<usize> = const { Cell::new(STACK_DEFAULT) };
}

/// Sets the limit of this thread, in bytes of the stack.
pub(crate) fn set_stack(limit: usize) {
    STACK.set(limit);
}

/// Calls `decode` with another limit for this thread, in bytes of the stack.
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
    /// Why the value that this thread is decoding was refused.
    static WHY: Cell<Option<String>> = const { Cell::new(None) };
}

/// A value could not be decoded. (An error passes through every level of the value, so it has no content; see [`WHY`].)
#[derive(Debug)]
struct Refused;

/// Empty, since the message was kept when the error was made.
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

/// Hands an error down to postcard, as postcard's own.
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

/// The messages of [`Refused`] after it has passed through postcard or rmp-serde.
const HANDED_THROUGH: [&str; 3] = ["", "Serde Deserialization Error", "uncategorized error: "];

/// Keeps the message of an error. The last one counts, since a type may recover from an error. Errors that only passed
/// through add nothing.
#[cold]
fn say(why: String) {
    if HANDED_THROUGH.contains(&&*why) {
        return;
    }
    let is_question = why == postcard::Error::WontImplement.to_string();
    WHY.set(Some(if is_question {
        format!(
            "its type must be told what the bytes contain, but this format does not say (types with \
             `#[serde(untagged)]` or `#[serde(tag = \"…\")]`, `serde_json::Value` and others need that): {OTHER}"
        )
    } else {
        why
    }));
}

/// The current position in the stack, roughly.
#[inline]
fn stack_pointer() -> usize {
    let here = 0_u8;
    (&raw const here).addr()
}

/// The limits for decoding one value.
struct Limits {
    /// The position in the stack at the start.
    base: usize,
    /// How many bytes of the stack decoding may take.
    stack: usize,
    /// How many more elements may be announced.
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

    /// Enters the next level of a value.
    #[inline]
    fn enter(&self) -> Result<(), Refused> {
        if self.base.abs_diff(stack_pointer()) > self.stack {
            return Err(de::Error::custom(format_args!(
                "it is nested too deeply: decoding it takes more than {} KiB of stack \
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
                "it has more elements than its bytes can hold",
            ));
        };
        self.elements.set(left);
        Ok(())
    }
}

/// An object of postcard's or serde's, with the limits.
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

/// Types with parts.
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

/// Types through which a type can contain itself and still end; their elements are announced by the bytes.
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

/// A visitor that gets the parts of a value.
struct Parts<'l, V> {
    visitor: Guarded<'l, V>,
    /// The bytes say how many there are.
    are_announced: bool,
}

impl<'l, V> Parts<'l, V> {
    /// Passes the parts on, with the limits.
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
        // postcard does not say how many elements there are if there are fewer bytes than that.
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
    /// Each element is counted when it is decoded.
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
    fn endless_nesting_is_an_error() {
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
                    assert!(why.contains("nested too deeply"), "{why}");
                }
            }
        });
        decoding.join().expect("it does not end the thread");
    }

    /// Such a type contains itself directly, and ends where the bytes do.
    #[test]
    fn a_type_that_ignores_the_end_of_the_bytes_does_not_overflow_the_stack() {
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
                .expect("it ignores the error");
            assert!(rest > 0);
        });
        decoding.join().expect("it does not end the thread");
    }

    #[test]
    fn reasonable_nesting_is_decoded() {
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
        // They are counted over many sequences, too.
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
    fn a_types_own_message_is_kept() {
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
        // And nothing from an earlier error.
        assert!(why::<Deep>(&[1, 5, 1, 1, 2]).contains("end"));
        assert_eq!(decode::<u8>(&[7]).expect("it is a number").0, 7);
        assert!(
            why::<Deep>(&[1, 5, 2]).contains("Option"),
            "{}",
            why::<Deep>(&[1, 5, 2])
        );
    }
}
