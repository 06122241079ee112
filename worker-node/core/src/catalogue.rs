//! What tasks of one template have in common: pools, shapes, and how long they take.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster_types::task::InGroup;
use cluster_types::{JobId, Map, Resources, Set, TaskTemplate};

/// What executors must have in common to be interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PoolKey(pub(crate) u32);

/// What tasks must have in common to inherit each other's leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ShapeKey(pub(crate) u32);

/// What the name of a pool stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PoolTraits {
    pub(crate) job: JobId,
    pub(crate) env_vars: Arc<BTreeMap<String, String>>,
    pub(crate) gpus: Vec<u16>,
}

/// What is remembered of a template while tasks of it come.
#[derive(Clone, Debug)]
struct Known {
    template: Arc<TaskTemplate>,
    shape: ShapeKey,
    env_vars: Arc<BTreeMap<String, String>>,
    /// The pool of its tasks without GPUs, by job (nearly always one).
    pool: Option<(JobId, PoolKey)>,
    /// Running average of how long user code ran, in microseconds.
    micros: u64,
    samples: u32,
}

/// Names for pools and shapes, and how long templates take.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    known: Map<usize, Known>,
    /// What is asked for and, of tasks in a placement group, the group and the bundle: no lease leaves its bundle.
    shapes: Map<(Resources, Option<InGroup>), ShapeKey>,
    pools: Map<PoolTraits, PoolKey>,
    pub(crate) traits: BTreeMap<PoolKey, PoolTraits>,
    /// Shapes and pools that were named, for names are not used twice.
    shapes_named: u32,
    pools_named: u32,
}

/// Templates remembered before those no task uses are forgotten.
const TEMPLATES: usize = 1_000;

impl Catalogue {
    fn known(&mut self, template: &Arc<TaskTemplate>) -> &mut Known {
        let key = Arc::as_ptr(template) as usize;
        if self.known.len() > TEMPLATES && !self.known.contains_key(&key) {
            self.known.retain(|_, known| Arc::strong_count(&known.template) > 1);
            // What has a shape has its template too.
            let used: Set<ShapeKey> = self.known.values().map(|known| known.shape).collect();
            self.shapes.retain(|_, shape| used.contains(shape));
        }
        let named = &mut self.shapes_named;
        let next = || {
            *named += 1;
            ShapeKey(*named)
        };
        let shapes = &mut self.shapes;
        // The entry holds the template, so its address names it as long as the entry lives.
        self.known.entry(key).or_insert_with(|| Known {
            template: template.clone(),
            shape: *shapes
                .entry((template.resources.clone(), template.strategy.group()))
                .or_insert_with(next),
            env_vars: Arc::new(template.env_vars.clone()),
            pool: None,
            micros: 0,
            samples: 0,
        })
    }

    pub(crate) fn sizes(&self) -> [(&'static str, usize); 4] {
        [
            ("templates", self.known.len()),
            ("kinds of leases", self.shapes.len()),
            ("kinds of pools", self.pools.len()),
            ("traits of pools", self.traits.len()),
        ]
    }

    pub(crate) fn shape(&mut self, template: &Arc<TaskTemplate>) -> ShapeKey {
        self.known(template).shape
    }

    /// The pool of a task that may use these devices.
    pub(crate) fn pool(&mut self, job: JobId, template: &Arc<TaskTemplate>, gpus: Vec<u16>) -> PoolKey {
        let known = self.known(template);
        if let Some((_, pool)) = known.pool.filter(|(of, _)| *of == job && gpus.is_empty()) {
            return pool;
        }
        let remember = gpus.is_empty();
        let traits = PoolTraits { job, env_vars: known.env_vars.clone(), gpus };
        let pool = match self.pools.get(&traits) {
            Some(pool) => *pool,
            None => {
                self.pools_named += 1;
                let pool = PoolKey(self.pools_named);
                self.pools.insert(traits.clone(), pool);
                self.traits.insert(pool, traits);
                pool
            }
        };
        if remember {
            self.known(template).pool = Some((job, pool));
        }
        pool
    }

    /// Forgets a pool that nothing uses.
    pub(crate) fn forget_pool(&mut self, pool: PoolKey) {
        if let Some(traits) = self.traits.remove(&pool) {
            self.pools.remove(&traits);
        }
        for known in self.known.values_mut() {
            known.pool = known.pool.filter(|(_, of)| *of != pool);
        }
    }

    /// A task of the template ran this long.
    pub(crate) fn observe(&mut self, template: &Arc<TaskTemplate>, micros: u64) {
        let known = self.known(template);
        known.micros = if known.samples == 0 { micros } else { (known.micros * 7 + micros) / 8 };
        known.samples = known.samples.saturating_add(1);
    }

    /// How many tasks of the template to queue at one executor, the running one included: about two milliseconds of
    /// work if it has proved short, else one.
    pub(crate) fn depth(&mut self, template: &Arc<TaskTemplate>) -> usize {
        let known = self.known(template);
        if known.samples < 2 || known.micros >= 1_000 {
            return 1;
        }
        (2_000 / known.micros.max(20)).clamp(1, 32) as usize
    }
}
