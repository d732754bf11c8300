//! Values of many types: results that a parent decodes, and arguments that a worker decodes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::ffi::{CString, OsString};
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZero, Wrapping};
use std::ops::{Bound, RangeInclusive};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use arbitrary::{Arbitrary, Unstructured};
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Input, Reader, Rest, decode, encode};

/// Decodes up to four values. Each consists of a byte that selects the type, a byte for the length (255: all that is
/// left), and the bytes of the value.
pub fn values(mut data: &[u8]) {
    for _ in 0..4 {
        let [which, len, rest @ ..] = data else {
            return;
        };
        let len = if *len == 255 {
            rest.len()
        } else {
            rest.len().min((*len).into())
        };
        let (bytes, behind) = rest.split_at(len);
        of_type(*which, bytes);
        data = behind;
    }
}

fn of_type(which: u8, bytes: &[u8]) {
    match which % 24 {
        0 => value::<Nested>(bytes),
        1 => value::<Chain>(bytes),
        2 => value::<Tree>(bytes),
        3 => value::<Vec<()>>(bytes),
        4 => value::<Vec<Vec<()>>>(bytes),
        5 => value::<BTreeMap<(), Vec<Cached>>>(bytes),
        6 => value::<HashMap<Nothing, Vec<Nothing>>>(bytes),
        7 => value::<HashMap<String, HashSet<Box<str>>>>(bytes),
        8 => value::<Vec<String>>(bytes),
        9 => value::<Attributes>(bytes),
        10 => value::<Vec<Choice>>(bytes),
        11 => value::<Library>(bytes),
        12 => value::<Collections>(bytes),
        13 => value::<Vec<Partly>>(bytes),
        14 => value::<Vec<(u8, Forgiving)>>(bytes),
        15 => value::<Greedy>(bytes),
        16 => refused::<Option<Untagged>>(bytes),
        17 => refused::<Option<Internally>>(bytes),
        18 => refused::<Vec<Flattened>>(bytes),
        19 => refused::<IgnoredAny>(bytes),
        20 => floats(bytes),
        21 => arguments(bytes),
        22 => made::<Made>(bytes),
        _ => made::<Vec<Tree>>(bytes),
    }
}

type Nested = Vec<(
    Option<String>,
    BTreeMap<u8, Vec<u64>>,
    Result<i32, char>,
    [bool; 3],
)>;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Chain {
    next: Option<Box<Chain>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Arbitrary)]
enum Tree {
    Leaf,
    Branches(Vec<Tree>),
    Named { of: BTreeMap<u8, Tree> },
    Pair(Box<(Tree, Option<Tree>)>),
}

#[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Nothing(PhantomData<String>);

/// Takes no bytes but much memory.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Cached {
    #[serde(skip)]
    cache: [u64; 32],
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Attributes {
    #[serde(skip)]
    skipped: [u64; 2],
    #[serde(default)]
    with_default: Vec<u16>,
    #[serde(rename = "other")]
    renamed: i64,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    through: Through,
    tried: Even,
    text: Cow<'static, str>,
    choice: Vec<Choice>,
    adjacent: Option<Adjacent>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Through(Option<Box<Attributes>>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
struct Even(u8);

impl TryFrom<u8> for Even {
    type Error = String;

    fn try_from(number: u8) -> Result<Even, String> {
        if number % 2 == 1 {
            return Err(format!("{number} is odd"));
        }
        Ok(Even(number))
    }
}

impl From<Even> for u8 {
    fn from(even: Even) -> u8 {
        even.0
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Choice {
    #[serde(alias = "first")]
    Unit,
    Newtype(Box<[Choice]>),
    Tuple(u8, #[serde(skip)] u64, i128),
    Struct {
        #[serde(default, skip_deserializing, skip_serializing)]
        nothing: String,
        some: Option<u32>,
    },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", content = "of")]
enum Adjacent {
    Nothing,
    Number(u32),
    More { of: Vec<Adjacent> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Library(
    Vec<(Duration, SystemTime)>,
    Vec<IpAddr>,
    Option<SocketAddr>,
    PathBuf,
    OsString,
    Option<CString>,
    (NonZero<u8>, NonZero<i64>, Wrapping<u16>),
    (RangeInclusive<char>, Bound<u128>),
);

#[derive(Debug, Serialize, Deserialize)]
struct Collections {
    list: LinkedList<Box<[u8]>>,
    queue: VecDeque<char>,
    set: BTreeSet<Vec<Option<bool>>>,
    heap: BinaryHeap<u16>,
}

impl PartialEq for Collections {
    fn eq(&self, other: &Collections) -> bool {
        let (heap, other_heap) = (self.heap.clone(), other.heap.clone());
        (&self.list, &self.queue, &self.set) == (&other.list, &other.queue, &other.set)
            && heap.into_sorted_vec() == other_heap.into_sorted_vec()
    }
}

/// Its field is sometimes skipped, which only the encoder notices.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Partly {
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<u8>,
}

/// Each field falls back to a default on any error. (An element of a vector also has a byte. Otherwise a million
/// elements would take no bytes at all, and cost three errors each.)
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Forgiving {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    children: [Option<Box<Forgiving>>; 2],
    #[serde(deserialize_with = "or_default")]
    numbers: Vec<u16>,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(T::deserialize(from).unwrap_or_default())
}

/// Reads elements to the end, and counts them.
#[derive(Debug, PartialEq)]
struct Greedy(usize);

impl Serialize for Greedy {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        vec![(); self.0].serialize(to)
    }
}

impl<'de> Deserialize<'de> for Greedy {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Greedy, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Greedy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Greedy, A::Error> {
                let mut count = 0;
                while let Some(()) = elements.next_element()? {
                    count += 1;
                }
                match elements.next_element::<()>()? {
                    Some(()) => Err(de::Error::custom("there is one more")),
                    None => Ok(Greedy(count)),
                }
            }
        }
        from.deserialize_seq(Count)
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "no value of it is ever made")]
enum Untagged {
    Number(u8),
    Text(String),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "is")]
#[expect(dead_code, reason = "no value of it is ever made")]
enum Internally {
    Nothing,
    Number { of: u8 },
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "no value of it is ever made")]
struct Flattened {
    of: u8,
    #[serde(flatten)]
    rest: BTreeMap<String, u8>,
}

/// A type whose values are hard to find as bytes.
#[derive(Debug, PartialEq, Serialize, Deserialize, Arbitrary)]
struct Made {
    texts: Vec<(String, char)>,
    numbers: (u16, i32, u64, i128, u128),
    of: BTreeMap<Option<i64>, Result<Box<str>, [u32; 2]>>,
    time: Duration,
}

/// Checks that a decoded value can be encoded and decoded again to the same value. (Then it may have too many elements:
/// the fuzz input may have written numbers with more bytes than needed, and more bytes allow more elements.)
fn value<T>(bytes: &[u8])
where
    T: fmt::Debug + PartialEq + Serialize + for<'de> Deserialize<'de>,
{
    if let Ok(value) = told(take::<T>(bytes)) {
        again(&value, T::eq);
    }
}

/// The same for floats, which may be NaN.
fn floats(bytes: &[u8]) {
    if let Ok(value) = told(take::<Vec<(f32, f64)>>(bytes)) {
        let bits = |(a, b): &(f32, f64)| (a.to_bits(), b.to_bits());
        let is_same =
            |one: &Vec<_>, other: &Vec<_>| one.iter().map(bits).eq(other.iter().map(bits));
        again(&value, is_same);
    }
}

/// Decodes a type that postcard can't decode from any bytes.
fn refused<T: fmt::Debug + for<'de> Deserialize<'de>>(bytes: &[u8]) {
    let _ = told(take::<T>(bytes));
}

/// Makes a value without decoding. It takes few bytes of the input, so that the value is not too deep.
fn made<T>(bytes: &[u8])
where
    T: fmt::Debug + PartialEq + Serialize + for<'a> Deserialize<'a> + for<'a> Arbitrary<'a>,
{
    let bytes = &bytes[..bytes.len().min(500)];
    if let Ok(value) = T::arbitrary_take_rest(Unstructured::new(bytes)) {
        again(&value, T::eq);
    }
}

fn again<T>(value: &T, is_same: impl Fn(&T, &T) -> bool)
where
    T: fmt::Debug + Serialize + for<'de> Deserialize<'de>,
{
    let mut bytes = vec![7];
    if let Err(error) = encode(value, &mut bytes) {
        assert!(error.to_string().contains("is skipped"), "{error}");
        assert_eq!(bytes, [7]);
        return;
    }
    match take::<T>(&bytes[1..]) {
        Ok(read) => assert!(is_same(&read, value), "{read:?} was {value:?}"),
        Err(error) => assert!(error.to_string().contains("more elements"), "{error}"),
    }
}

/// Not inlined, so that it takes the same amount of stack each time.
#[inline(never)]
fn take<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, CodecError> {
    decode(bytes)
}

/// Checks that an error has a message.
fn told<T>(result: Result<T, CodecError>) -> Result<T, CodecError> {
    result.inspect_err(|error| assert_ne!(error.to_string(), ""))
}

/// Reads arguments as the code of `#[pool_task]` does.
fn arguments(bytes: &[u8]) {
    let input = Input::new(Rest::Shared(bytes), None);
    let mut reader = Reader::new(&input);
    let mut read = || {
        let number: u32 = reader.take_owned()?;
        let text: &str = reader.take()?;
        let block = reader.take_block::<u16>()?;
        let more: Vec<Option<&str>> = reader.take()?;
        let len = text.len()
            + size_of_val(&*block)
            + more.iter().flatten().map(|t| t.len()).sum::<usize>();
        Ok::<_, CodecError>((number, len))
    };
    if let Ok((_, len)) = told(read()) {
        if let Ok(last) = told(reader.take_last_block::<u32>()) {
            assert!(len + size_of_val(&*last) <= bytes.len());
        }
        assert_eq!(reader.finish(), Ok(()));
    } else {
        let _ = told(reader.finish());
    }
}
