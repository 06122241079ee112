//! What one node has, and what of it is leased.
//!
//! LEDGER-1: per resource, free + leased = total, never negative, and a GPU index never carries more than 1.0. Only
//! CPU may be booked `over`: a woken task resumes at once (rule S4), and until the overlap is gone `free` is zero.

use cluster_types::{Amount, GpuShare, Lease, Resources};
use smallvec::SmallVec;

/// One node's books.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    total: Resources,
    /// CPU of attempts that are awake; more than the total while something is over.
    leased_cpu: Amount,
    /// CPU that blocked attempts gave back (rule S4); not part of `leased_cpu`.
    lent_cpu: Amount,
    leased_memory: Amount,
    /// Free per GPU index.
    gpus: Vec<Amount>,
    /// Free per custom resource, in the order of `total.custom`.
    custom: SmallVec<[Amount; 1]>,
    /// Of books of a lease: what that holds.
    whole: Option<Lease>,
}

impl Ledger {
    pub fn new(total: Resources) -> Self {
        let whole = total.gpu.0 / Amount::PER_UNIT;
        let rest = Amount(total.gpu.0 % Amount::PER_UNIT);
        let mut gpus = vec![Amount::ONE; whole as usize];
        gpus.extend((!rest.is_zero()).then_some(rest));
        let custom = total.custom.iter().map(|(_, amount)| *amount).collect();
        Self {
            total,
            leased_cpu: Amount::ZERO,
            lent_cpu: Amount::ZERO,
            leased_memory: Amount::ZERO,
            gpus,
            custom,
            whole: None,
        }
    }

    /// The books of what a lease holds: those GPU indices and no others.
    pub fn of_lease(total: Resources, lease: &Lease) -> Self {
        let mut ledger = Self::new(Resources { gpu: Amount::ZERO, ..total.clone() });
        for share in &lease.gpus {
            let index = usize::from(share.index);
            if ledger.gpus.len() <= index {
                ledger.gpus.resize(index + 1, Amount::ZERO);
            }
            ledger.gpus[index] += share.amount;
        }
        ledger.total = total;
        ledger.whole = Some(lease.clone());
        ledger
    }

    pub fn total(&self) -> &Resources {
        &self.total
    }

    /// Nobody's.
    pub fn free_cpu(&self) -> Amount {
        (self.total.cpu - self.leased_cpu).max(Amount::ZERO)
    }

    /// Free even if every blocked attempt woke.
    pub fn free_cpu_beyond_lent(&self) -> Amount {
        (self.total.cpu - self.leased_cpu - self.lent_cpu).max(Amount::ZERO)
    }

    /// CPU that awake attempts hold.
    pub fn leased_cpu(&self) -> Amount {
        self.leased_cpu
    }

    /// Booked beyond the total because blocked attempts woke.
    pub fn over(&self) -> Amount {
        (self.leased_cpu - self.total.cpu).max(Amount::ZERO)
    }

    /// Whether the request fits what is free now.
    pub fn fits(&self, request: &Resources) -> bool {
        self.free_cpu() >= request.cpu && self.fits_beside_cpu(request) && self.has_gpus(request.gpu)
    }

    /// Whether the request fits an empty node like this one.
    pub fn could_ever_fit(&self, request: &Resources) -> bool {
        let gpus_fit = request.gpu <= Amount::ONE || request.gpu.0 % Amount::PER_UNIT == 0;
        gpus_fit && request.missing_from(&self.total).is_empty()
    }

    /// How often the request fits what is free now, by CPU alone; at least 1 for a request without CPU.
    pub fn times_cpu_fits(&self, request: &Resources) -> usize {
        if request.cpu.is_zero() { 1 } else { (self.free_cpu().0 / request.cpu.0).max(0) as usize }
    }

    /// Books the request if it fits.
    pub fn take(&mut self, request: &Resources) -> Option<Lease> {
        if self.free_cpu() < request.cpu || !self.fits_beside_cpu(request) {
            return None;
        }
        let lease = Lease { gpus: self.find_gpus(request.gpu)? };
        self.book(request, &lease);
        Some(lease)
    }

    /// Books a lease that the node handed on already: CPU over if need be, the rest only if it is free.
    pub fn adopt(&mut self, request: &Resources, lease: &Lease) -> bool {
        let gpus_are_free = lease
            .gpus
            .iter()
            .all(|share| self.gpus.get(usize::from(share.index)).is_some_and(|free| *free >= share.amount));
        let named: Amount = lease.gpus.iter().map(|share| share.amount).sum();
        if !gpus_are_free || named != request.gpu || !self.fits_beside_cpu(request) {
            return false;
        }
        self.book(request, lease);
        true
    }

    /// Gives a lease back. `blocked`: its CPU was lent already.
    pub fn give(&mut self, request: &Resources, lease: &Lease, blocked: bool) {
        if blocked {
            self.lent_cpu -= request.cpu;
        } else {
            self.leased_cpu -= request.cpu;
        }
        self.leased_memory -= request.memory;
        for share in &lease.gpus {
            if let Some(free) = self.gpus.get_mut(usize::from(share.index)) {
                *free += share.amount;
            }
        }
        for (name, amount) in &request.custom {
            if let Some(at) = self.custom_at(name) {
                self.custom[at] += *amount;
            }
        }
    }

    /// An attempt waits: its CPU is lent (rule S4).
    pub fn block(&mut self, cpu: Amount) {
        self.leased_cpu -= cpu;
        self.lent_cpu += cpu;
    }

    /// It goes on: its CPU is booked again, over if need be (rule S4).
    pub fn unblock(&mut self, cpu: Amount) {
        self.lent_cpu -= cpu;
        self.leased_cpu += cpu;
    }

    /// What is not leased.
    pub fn available(&self) -> Resources {
        let mut free = Resources {
            cpu: self.free_cpu(),
            gpu: self.gpus.iter().copied().sum(),
            memory: self.total.memory - self.leased_memory,
            ..Resources::default()
        };
        for ((name, _), amount) in self.total.custom.iter().zip(&self.custom) {
            free.set_custom(name, *amount);
        }
        free
    }

    /// LEDGER-1 against the leases that attempts say they have: (request, lease, blocked).
    pub fn audit<'a>(
        &self,
        leases: impl Iterator<Item = (&'a Resources, &'a Lease, bool)>,
    ) -> Result<(), String> {
        let mut again = match &self.whole {
            Some(lease) => Ledger::of_lease(self.total.clone(), lease),
            None => Ledger::new(self.total.clone()),
        };
        for (request, lease, blocked) in leases {
            again.book(request, lease);
            if blocked {
                again.block(request.cpu);
            }
        }
        let same = again.leased_cpu == self.leased_cpu
            && again.lent_cpu == self.lent_cpu
            && again.leased_memory == self.leased_memory
            && again.gpus == self.gpus
            && again.custom == self.custom;
        if !same {
            return Err(format!("LEDGER-1: books {self:?}, attempts say {again:?}"));
        }
        let negative =
            [self.leased_cpu, self.lent_cpu, self.leased_memory, self.total.memory - self.leased_memory]
                .into_iter()
                .chain(self.gpus.iter().copied())
                .chain(self.custom.iter().copied())
                .any(|amount| amount < Amount::ZERO);
        if negative || self.gpus.iter().any(|free| *free > Amount::ONE) {
            return Err(format!("LEDGER-1: an amount is negative, or a GPU has more than 1: {self:?}"));
        }
        Ok(())
    }

    fn book(&mut self, request: &Resources, lease: &Lease) {
        self.leased_cpu += request.cpu;
        self.leased_memory += request.memory;
        for share in &lease.gpus {
            if let Some(free) = self.gpus.get_mut(usize::from(share.index)) {
                *free -= share.amount;
            }
        }
        for (name, amount) in &request.custom {
            if let Some(at) = self.custom_at(name) {
                self.custom[at] -= *amount;
            }
        }
    }

    fn fits_beside_cpu(&self, request: &Resources) -> bool {
        self.leased_memory + request.memory <= self.total.memory
            && request
                .custom
                .iter()
                .all(|(name, amount)| self.custom_at(name).is_some_and(|at| self.custom[at] >= *amount))
    }

    fn custom_at(&self, name: &str) -> Option<usize> {
        self.total.custom.binary_search_by(|(have, _)| have.as_ref().cmp(name)).ok()
    }

    fn has_gpus(&self, asked: Amount) -> bool {
        if asked <= Amount::ONE {
            return asked.is_zero() || self.gpus.iter().any(|free| *free >= asked);
        }
        let whole = self.gpus.iter().filter(|free| **free == Amount::ONE).count();
        asked.0 % Amount::PER_UNIT == 0 && whole as i64 >= asked.0 / Amount::PER_UNIT
    }

    /// A fraction names the one index that it fills best; above 1, whole free indices.
    fn find_gpus(&self, asked: Amount) -> Option<SmallVec<[GpuShare; 1]>> {
        if asked.is_zero() {
            return Some(SmallVec::new());
        }
        if asked <= Amount::ONE {
            let (index, _) = self
                .gpus
                .iter()
                .enumerate()
                .filter(|(_, free)| **free >= asked)
                .min_by_key(|(_, free)| **free)?;
            return Some(smallvec::smallvec![GpuShare { index: index as u16, amount: asked }]);
        }
        let wanted = usize::try_from(asked.0 / Amount::PER_UNIT).ok()?;
        let whole: SmallVec<[GpuShare; 1]> = self
            .gpus
            .iter()
            .enumerate()
            .filter(|(_, free)| **free == Amount::ONE)
            .take(wanted)
            .map(|(index, _)| GpuShare { index: index as u16, amount: Amount::ONE })
            .collect();
        (whole.len() == wanted).then_some(whole)
    }
}

/// Whether these can be a node's total or a request: no negative amount, none too large to sum, GPUs countable.
pub(crate) fn check_amounts(resources: &Resources) -> Result<(), String> {
    const MOST: i64 = i64::MAX / 1_000_000;
    for (name, amount) in resources.iter() {
        if amount < Amount::ZERO {
            return Err(format!("{name} is {amount}; an amount of a resource cannot be negative"));
        }
        if amount.0 > MOST && name != "memory" || amount.0 > i64::MAX / 4 {
            return Err(format!("{name} is {amount}; that is more than can be counted"));
        }
    }
    if resources.gpu > Amount::units(4096) {
        return Err(format!("GPU is {}; at most 4096 can be counted", resources.gpu));
    }
    let sorted = resources.custom.windows(2).all(|pair| pair[0].0 < pair[1].0);
    if !sorted || resources.custom.iter().any(|(_, amount)| amount.is_zero()) {
        return Err("custom resources are not in order".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(amount: Amount) -> Resources {
        Resources { gpu: amount, ..Resources::default() }
    }

    #[test]
    fn fractions_of_a_gpu_share_one_index_and_whole_ones_need_free_indices() {
        let mut ledger = Ledger::new(gpus(Amount::units(2)));
        let half = gpus(Amount(5_000));
        let first = ledger.take(&half).unwrap();
        let second = ledger.take(&half).unwrap();
        assert_eq!(first.gpus[0].index, second.gpus[0].index);
        assert!(ledger.take(&gpus(Amount::units(2))).is_none());
        let whole = ledger.take(&gpus(Amount::ONE)).unwrap();
        assert_ne!(whole.gpus[0].index, first.gpus[0].index);
        ledger.give(&half, &first, false);
        assert!(ledger.fits(&half));
        assert!(!ledger.fits(&gpus(Amount(6_000))));
    }

    #[test]
    fn a_woken_task_is_booked_over_and_nothing_is_free_until_that_is_gone() {
        let one = Resources::cpus(1);
        let mut ledger = Ledger::new(one.clone());
        let parent = ledger.take(&one).unwrap();
        ledger.block(one.cpu);
        let child = ledger.take(&one).unwrap();
        ledger.unblock(one.cpu);
        assert_eq!(ledger.over(), Amount::ONE);
        assert_eq!(ledger.free_cpu(), Amount::ZERO);
        ledger.give(&one, &child, false);
        assert_eq!(ledger.over(), Amount::ZERO);
        ledger.give(&one, &parent, false);
        ledger.audit(std::iter::empty()).unwrap();
    }
}
