//! Values to bytes and back. The one place that knows encodings: bincode between Rust programs, MessagePack for values
//! that every language reads (`Kind::PLAIN`).
//!
//! Arrays and references are extensions: of serde's data model they are the newtype `_ExtStruct` of a tag and bytes,
//! which `rmp-serde` writes as MessagePack's own extension and bincode as its content. What they need beside the bytes,
//! an array's memory and a reference's connection, is in [`CONTEXT`] while a value is written or read.

use std::cell::RefCell;
use std::io::Cursor;

use client_runtime::{Client, Got, HandleSource, Kind, Parcel, ValueBytes, View};
use cluster_types::{INLINE_MAX, Refs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::object::Live;
use crate::{Error, Result};

/// The extension that is an array.
pub(crate) const ARRAY: i8 = 1;
/// The extension that is a reference to an object: its sixteen bytes.
pub(crate) const REFERENCE: i8 = 2;

const CONFIG: bincode::config::Configuration = bincode::config::standard();

/// Memory that goes behind a value.
pub(crate) type Buffer = Box<dyn AsRef<[u8]>>;

/// What writing a value collects.
#[derive(Default)]
pub(crate) struct Writing {
    pub(crate) buffers: Vec<Buffer>,
    /// Each with a handle, since what they were written from may be gone before the value is anywhere.
    pub(crate) refs: Vec<Live>,
}

/// What reading a value needs.
#[derive(Clone)]
pub(crate) struct Reading {
    pub(crate) client: Client,
    pub(crate) bytes: ValueBytes,
    pub(crate) source: HandleSource,
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} buffers, {:?}", self.buffers.len(), self.refs)
    }
}

#[derive(Default)]
pub(crate) struct Context {
    pub(crate) writing: Option<Writing>,
    pub(crate) reading: Option<Reading>,
}

thread_local! {
    pub(crate) static CONTEXT: RefCell<Context> = RefCell::default();
}

/// An extension, in any encoding.
pub(crate) struct Extension {
    pub(crate) tag: i8,
    pub(crate) body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "_ExtStruct")]
struct Wire((i8, serde_bytes::ByteBuf));

impl Serialize for Extension {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire((self.tag, serde_bytes::ByteBuf::from(self.body.clone()))).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Extension {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Wire((tag, body)) = Wire::deserialize(deserializer)?;
        Ok(Extension { tag, body: body.into_vec() })
    }
}

/// A value's parts, before they have memory.
pub(crate) struct Parts {
    pub(crate) kind: Kind,
    pub(crate) in_band: Vec<u8>,
    pub(crate) writing: Writing,
}

/// What `write` collects while it appends to the bytes.
pub(crate) fn collect(kind: Kind, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<Parts> {
    let before = CONTEXT.with_borrow_mut(|context| context.writing.replace(Writing::default()));
    let mut in_band = Vec::with_capacity(64);
    let written = write(&mut in_band);
    let writing = CONTEXT.with_borrow_mut(|context| std::mem::replace(&mut context.writing, before));
    written?;
    Ok(Parts { kind, in_band, writing: writing.unwrap_or_default() })
}

/// Runs what writes more into what was begun.
pub(crate) fn with<R>(writing: &mut Writing, write: impl FnOnce() -> R) -> R {
    let begun = std::mem::take(writing);
    let before = CONTEXT.with_borrow_mut(|context| context.writing.replace(begun));
    let written = write();
    let done = CONTEXT.with_borrow_mut(|context| std::mem::replace(&mut context.writing, before));
    *writing = done.unwrap_or_default();
    written
}

/// Appends a value.
pub(crate) fn append<T: Serialize + ?Sized>(kind: Kind, value: &T, out: &mut Vec<u8>) -> Result<()> {
    let what = std::any::type_name::<T>;
    match kind {
        Kind::PLAIN => {
            let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
            value.serialize(&mut serializer).map_err(|error| {
                Error::Value(format!(
                    "a value of type {} cannot be written as a plain value: {error}",
                    what()
                ))
            })
        }
        _ => bincode::serde::encode_into_std_write(value, out, CONFIG)
            .map(drop)
            .map_err(|error| Error::Value(format!("a value of type {} cannot be written: {error}", what()))),
    }
}

/// The parts of one value. What is nothing but an array or a reference is written so that every language reads it.
pub(crate) fn parts<T: Serialize + ?Sized>(kind: Kind, value: &T) -> Result<Parts> {
    let parts = collect(kind, |out| append(kind, value, out))?;
    let alone = parts.writing.buffers.len() + parts.writing.refs.len() == 1;
    if kind != Kind::PLAIN && alone && is_extension(&parts.in_band) {
        return collect(Kind::PLAIN, |out| append(Kind::PLAIN, value, out));
    }
    Ok(parts)
}

fn is_extension(in_band: &[u8]) -> bool {
    let read = bincode::serde::decode_from_slice::<(i8, serde_bytes::ByteBuf), _>(in_band, CONFIG);
    matches!(read, Ok(((ARRAY, _), len)) if len == in_band.len())
}

/// The refs inside a value: to be kept until it is put, passed on or returned.
#[derive(Debug)]
pub(crate) struct Inside(Vec<Live>);

impl Inside {
    pub(crate) fn ids(&self) -> Refs {
        self.0.iter().map(|live| live.id).collect()
    }
}

/// Parts in memory of the store, or inline; and the refs inside.
pub(crate) fn parcel(client: &Client, parts: Parts) -> Result<(Parcel, Inside)> {
    let Parts { kind, in_band, writing } = parts;
    let refs = Inside(writing.refs);
    if writing.buffers.is_empty()
        && in_band.len() <= INLINE_MAX
        && let Some(parcel) = Parcel::small(kind, &in_band)
    {
        return Ok((parcel, refs));
    }
    let buffers: Vec<&[u8]> = writing.buffers.iter().map(|buffer| (**buffer).as_ref()).collect();
    let lengths: Vec<usize> = buffers.iter().map(|buffer| buffer.len()).collect();
    let draft = client.reserve(kind, in_band.len(), &lengths, &mut crate::current::interrupt)?;
    let parcel = draft.write(&in_band, &buffers, &mut crate::current::interrupt)?;
    Ok((parcel, refs))
}

/// Reads one value after the other from the same bytes.
pub(crate) struct Reader<'a> {
    kind: Kind,
    cursor: Cursor<&'a [u8]>,
    reading: Reading,
}

impl<'a> Reader<'a> {
    /// Of a value of Rust's, or of one that every language reads.
    pub(crate) fn new(bytes: &'a ValueBytes, client: &Client, source: HandleSource) -> Result<Reader<'a>> {
        let view = View::parse(bytes)
            .map_err(|error| Error::Value(format!("a stored value is damaged: {error}")))?;
        match view.kind() {
            Kind::BINCODE | Kind::PLAIN => {}
            Kind::PICKLE5 => {
                return Err(Error::Value(
                    "the value is a Python object, which only Python reads: pass it as a plain value \
                     (concurrent_ml.rust.put(value) for numbers, strings, bytes, lists, maps and arrays)"
                        .to_owned(),
                ));
            }
            other => {
                return Err(Error::Value(format!(
                    "the value is of kind {}, which is none of Rust's",
                    other.0
                )));
            }
        }
        let reading = Reading { client: client.clone(), bytes: bytes.clone(), source };
        Ok(Reader { kind: view.kind(), cursor: Cursor::new(view.in_band()), reading })
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.kind == Kind::PLAIN
    }

    /// The next one.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<T> {
        let before = CONTEXT.with_borrow_mut(|context| context.reading.replace(self.reading.clone()));
        let read = match self.kind {
            Kind::PLAIN => {
                let mut deserializer = rmp_serde::Deserializer::new(&mut self.cursor);
                T::deserialize(&mut deserializer).map_err(|error| error.to_string())
            }
            _ => {
                let at = usize::try_from(self.cursor.position()).unwrap_or(usize::MAX);
                let rest = self.cursor.get_ref().get(at..).unwrap_or_default();
                bincode::serde::decode_from_slice::<T, _>(rest, CONFIG)
                    .map(|(value, len)| {
                        self.cursor.set_position((at + len) as u64);
                        value
                    })
                    .map_err(|error| error.to_string())
            }
        };
        CONTEXT.with_borrow_mut(|context| context.reading = before);
        read.map_err(|error| Error::Value(format!("the value is no {}: {error}", std::any::type_name::<T>())))
    }

    /// How many values follow in a list of plain ones.
    pub(crate) fn list(&mut self) -> Result<u32> {
        rmp::decode::read_array_len(&mut self.cursor)
            .map_err(|error| Error::Value(format!("the arguments are malformed: {error}")))
    }
}

/// The value of what was got.
pub(crate) fn value<T: DeserializeOwned>(client: &Client, got: &Got, source: HandleSource) -> Result<T> {
    match got {
        Got::Value(bytes) => Reader::new(bytes, client, source)?.next(),
        Got::Failed(failure) => Err(Error::Task(failure.into())),
    }
}
