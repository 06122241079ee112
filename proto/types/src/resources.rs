//! What work needs and what machines have (rule S1).

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::sync::Arc;

use smallvec::SmallVec;

/// An amount of a resource in ten-thousandths, so that sums are exact. Memory counts bytes, whole.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(pub i64);

/// A number that cannot be an amount of a resource.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AmountError {
    /// Less than nothing.
    #[error("is {0}; an amount of a resource cannot be negative")]
    Negative(f64),
    /// NaN or infinite.
    #[error("is {0}; an amount of a resource must be a finite number")]
    NotFinite(f64),
    /// Beyond 9 × 10^14.
    #[error("is {0}; that is more than can be counted")]
    TooLarge(f64),
    /// A GPU request like 1.5 (rule S1).
    #[error("is {0}; above 1, GPUs are requested whole")]
    FractionalGpus(f64),
}

impl Amount {
    /// Nothing.
    pub const ZERO: Amount = Amount(0);
    /// One unit: one core, one GPU.
    pub const ONE: Amount = Amount(Self::PER_UNIT);
    /// Ten-thousandths in a unit.
    pub const PER_UNIT: i64 = 10_000;

    /// `n` whole units.
    pub const fn units(n: i64) -> Amount {
        Amount(n * Self::PER_UNIT)
    }

    /// The nearest amount; anything above zero is at least a ten-thousandth.
    ///
    /// # Errors
    /// If the number is negative, NaN, infinite or too large to count.
    ///
    /// ```
    /// use cluster_types::Amount;
    /// assert_eq!(Amount::from_f64(0.5), Ok(Amount(5_000)));
    /// assert!(Amount::from_f64(f64::NAN).is_err());
    /// ```
    pub fn from_f64(number: f64) -> Result<Amount, AmountError> {
        if !number.is_finite() {
            return Err(AmountError::NotFinite(number));
        }
        if number < 0.0 {
            return Err(AmountError::Negative(number));
        }
        if number > 9e14 {
            return Err(AmountError::TooLarge(number));
        }
        let scaled = (number * Self::PER_UNIT as f64).round() as i64;
        Ok(Amount(if number > 0.0 { scaled.max(1) } else { 0 }))
    }

    /// In units.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / Self::PER_UNIT as f64
    }

    /// Whether there is nothing of it.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl Add for Amount {
    type Output = Amount;
    fn add(self, other: Amount) -> Amount {
        Amount(self.0.saturating_add(other.0))
    }
}
impl Sub for Amount {
    type Output = Amount;
    fn sub(self, other: Amount) -> Amount {
        Amount(self.0.saturating_sub(other.0))
    }
}
impl Neg for Amount {
    type Output = Amount;
    fn neg(self) -> Amount {
        Amount(-self.0)
    }
}
impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        *self = *self + other;
    }
}
impl SubAssign for Amount {
    fn sub_assign(&mut self, other: Amount) {
        *self = *self - other;
    }
}
impl Sum for Amount {
    fn sum<I: Iterator<Item = Amount>>(amounts: I) -> Amount {
        amounts.fold(Amount::ZERO, Add::add)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_f64())
    }
}
impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bag of resources: a request, or a node's total. Equal bags are equal values, so a request is also a *shape*.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resources {
    /// Cores.
    pub cpu: Amount,
    /// GPUs; above 1 whole, a fraction lies on one index.
    pub gpu: Amount,
    /// Bytes (as units).
    pub memory: Amount,
    /// Named by the user; sorted by name, no zeros, no repeats.
    pub custom: SmallVec<[(Arc<str>, Amount); 1]>,
}

impl Resources {
    /// `n` cores and nothing else.
    pub fn cpus(n: i64) -> Self {
        Self { cpu: Amount::units(n), ..Self::default() }
    }

    /// Sets a custom resource, keeping the order that makes equal bags equal.
    pub fn set_custom(&mut self, name: &str, amount: Amount) {
        match self.custom.binary_search_by(|(have, _)| have.as_ref().cmp(name)) {
            Ok(at) if amount.is_zero() => {
                self.custom.remove(at);
            }
            Ok(at) => self.custom[at].1 = amount,
            Err(_) if amount.is_zero() => {}
            Err(at) => self.custom.insert(at, (name.into(), amount)),
        }
    }

    /// The amount of a custom resource; zero where there is none.
    pub fn custom(&self, name: &str) -> Amount {
        match self.custom.binary_search_by(|(have, _)| have.as_ref().cmp(name)) {
            Ok(at) => self.custom[at].1,
            Err(_) => Amount::ZERO,
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.cpu.is_zero() && self.gpu.is_zero() && self.memory.is_zero() && self.custom.is_empty()
    }

    /// Every resource with its name (`CPU`, `GPU`, `memory`, then the custom ones), zeros left out.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Amount)> {
        [("CPU", self.cpu), ("GPU", self.gpu), ("memory", self.memory)]
            .into_iter()
            .filter(|(_, amount)| !amount.is_zero())
            .chain(self.custom.iter().map(|(name, amount)| (name.as_ref(), *amount)))
    }

    /// The names of what `self` asks for beyond what `total` has, with both amounts.
    pub fn missing_from(&self, total: &Resources) -> Vec<(String, Amount, Amount)> {
        self.iter()
            .filter_map(|(name, asked)| {
                let has = match name {
                    "CPU" => total.cpu,
                    "GPU" => total.gpu,
                    "memory" => total.memory,
                    custom => total.custom(custom),
                };
                (asked > has).then(|| (name.to_owned(), asked, has))
            })
            .collect()
    }

    /// Checks what a request must obey beyond each amount being one (rule S1).
    ///
    /// # Errors
    /// If more than one GPU is asked for and not a whole number of them.
    pub fn check_request(&self) -> Result<(), AmountError> {
        if self.gpu > Amount::ONE && self.gpu.0 % Amount::PER_UNIT != 0 {
            return Err(AmountError::FractionalGpus(self.gpu.as_f64()));
        }
        Ok(())
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (i, (name, amount)) in self.iter().enumerate() {
            write!(f, "{}{amount} {name}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// A part of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuShare {
    /// The device's index on its node.
    pub index: u16,
    /// At most one unit.
    pub amount: Amount,
}

/// What an attempt was given of its node. The amounts are those of its request; what the request does not say is which
/// GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Lease {
    /// One share per device; empty for a request without GPUs.
    pub gpus: SmallVec<[GpuShare; 1]>,
}
