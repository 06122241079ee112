//! Arrays that lie in shared memory.

use std::marker::PhantomData;
use std::ops::Range;

use client_runtime::ValueBytes;
use client_runtime::View;
use ndarray::{ArcArray, Array, ArrayView, Dimension, IxDyn};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{ARRAY, Buffer, CONTEXT, Extension};

/// A number that arrays may be of. The same in memory in Rust and NumPy.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// As NumPy writes it.
    const DTYPE: &'static str;
}

macro_rules! elements {
    ($($kind:ty => $name:literal),*) => {
        $(impl Element for $kind {
            const DTYPE: &'static str = $name;
        })*
    };
}
elements!(f32 => "<f4", f64 => "<f8", i8 => "|i1", i16 => "<i2", i32 => "<i4", i64 => "<i8",
          u8 => "|u1", u16 => "<u2", u32 => "<u4", u64 => "<u8");

/// An array that is passed without a copy: got, it is a view of the memory that its node's processes share, whatever its
/// size; NumPy's arrays become it, and it becomes one of them.
///
/// Made of an array of `ndarray` by `into()`, or [`SharedArray::from`].
///
/// ```
/// use concurrent_ml::SharedArray;
/// let array = SharedArray::from(ndarray::array![[1.0, 2.0], [3.0, 4.0]]);
/// assert_eq!(array.view().sum(), 10.0);
/// ```
#[derive(Clone, Debug)]
pub struct SharedArray<A, D: Dimension = IxDyn> {
    data: Data<A, D>,
}

#[derive(Clone, Debug)]
enum Data<A, D: Dimension> {
    Own(ArcArray<A, D>),
    /// Of a value in the store, which stays as it is while this lives.
    Stored {
        bytes: ValueBytes,
        range: Range<usize>,
        shape: D,
        elements: PhantomData<fn() -> A>,
    },
}

impl<A: Element, D: Dimension> SharedArray<A, D> {
    /// What it holds.
    pub fn view(&self) -> ArrayView<'_, A, D> {
        match &self.data {
            Data::Own(array) => array.view(),
            Data::Stored { bytes, range, shape, .. } => {
                let elements: &[A] = bytemuck::cast_slice(&bytes[range.clone()]);
                // Checked when it was read.
                ArrayView::from_shape(shape.clone(), elements)
                    .unwrap_or_else(|error| unreachable!("an array that was checked: {error}"))
            }
        }
    }

    /// A copy that can be changed.
    pub fn to_owned(&self) -> Array<A, D> {
        self.view().to_owned()
    }

    /// Whether it is a view of shared memory.
    pub fn is_shared(&self) -> bool {
        matches!(&self.data, Data::Stored { bytes, .. } if bytes.is_shared())
    }
}

impl<A: Element, D: Dimension> From<Array<A, D>> for SharedArray<A, D> {
    fn from(array: Array<A, D>) -> Self {
        let array = if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() };
        SharedArray { data: Data::Own(array.into_shared()) }
    }
}

/// What is written of an array beside its memory.
#[derive(Serialize, Deserialize)]
struct Header(String, Vec<u64>, u32);

/// An array's memory, while it is written.
struct Memory<A, D: Dimension>(SharedArray<A, D>);

impl<A: Element, D: Dimension> AsRef<[u8]> for Memory<A, D> {
    fn as_ref(&self) -> &[u8] {
        match &self.0.data {
            Data::Own(array) => array.as_slice().map(bytemuck::cast_slice).unwrap_or_default(),
            Data::Stored { bytes, range, .. } => &bytes[range.clone()],
        }
    }
}

impl<A: Element, D: Dimension + 'static> Serialize for SharedArray<A, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let memory: Buffer = Box::new(Memory(self.clone()));
        let index = CONTEXT.with_borrow_mut(|context| {
            let writing = context.writing.as_mut()?;
            writing.buffers.push(memory);
            u32::try_from(writing.buffers.len() - 1).ok()
        });
        let index = index
            .ok_or_else(|| S::Error::custom("shared arrays are written only into the cluster's values"))?;
        let shape = self.view().shape().iter().map(|&length| length as u64).collect();
        let body = rmp_serde::to_vec(&Header(A::DTYPE.to_owned(), shape, index)).map_err(S::Error::custom)?;
        Extension { tag: ARRAY, body }.serialize(serializer)
    }
}

impl<'de, A: Element, D: Dimension> Deserialize<'de> for SharedArray<A, D> {
    fn deserialize<De: Deserializer<'de>>(deserializer: De) -> Result<Self, De::Error> {
        let extension = Extension::deserialize(deserializer)?;
        if extension.tag != ARRAY {
            return Err(De::Error::custom("it is no array"));
        }
        let Header(dtype, shape, index) =
            rmp_serde::from_slice(&extension.body).map_err(De::Error::custom)?;
        if dtype != A::DTYPE {
            return Err(De::Error::custom(format!(
                "its elements are {dtype}, and {} was expected ({})",
                A::DTYPE,
                std::any::type_name::<A>()
            )));
        }
        let bytes =
            CONTEXT.with_borrow(|context| context.reading.as_ref().map(|reading| reading.bytes.clone()));
        let bytes = bytes
            .ok_or_else(|| De::Error::custom("shared arrays are read only from the cluster's values"))?;
        let view = View::parse(&bytes).map_err(De::Error::custom)?;
        let range =
            view.buffer_range(index as usize).ok_or_else(|| De::Error::custom("the array has no memory"))?;
        let mut dimension = D::zeros(shape.len());
        if D::NDIM.is_some_and(|expected| expected != shape.len()) {
            return Err(De::Error::custom(format!("it has {} dimensions, not {:?}", shape.len(), D::NDIM)));
        }
        for (place, length) in dimension.slice_mut().iter_mut().zip(&shape) {
            *place = usize::try_from(*length).map_err(De::Error::custom)?;
        }
        let memory = &bytes[range.clone()];
        match bytemuck::try_cast_slice::<u8, A>(memory) {
            Ok(elements) => {
                ArrayView::from_shape(dimension.clone(), elements).map_err(De::Error::custom)?;
                Ok(SharedArray {
                    data: Data::Stored {
                        bytes: bytes.clone(),
                        range,
                        shape: dimension,
                        elements: PhantomData,
                    },
                })
            }
            // A small value travels in messages, where nothing is aligned.
            Err(_) => {
                let elements = bytemuck::allocation::pod_collect_to_vec::<u8, A>(memory);
                let array = Array::from_shape_vec(dimension, elements).map_err(De::Error::custom)?;
                Ok(SharedArray { data: Data::Own(array.into_shared()) })
            }
        }
    }
}
