//! Where the bundles of a placement group go: as a pure question to the nodes' books, all or nothing.
//!
//! PACK: on one node if they fit one, else on as few as first-fit by size finds. SPREAD: each on the node with the
//! fewest of the group, then the least load. STRICT_PACK: on one node. STRICT_SPREAD: each on another node, found
//! wherever there is such a matching.

use cluster_types::task::GroupStrategy;
use cluster_types::{Amount, Map, ObjectId, Resources, Set};

use crate::bundles::Place;
use crate::groups::Group;
use crate::head::Head;
use crate::ledger::Ledger;
use crate::slab::NodeIx;

/// The nodes' books as they would be.
struct Trial<'a> {
    /// In an order that depends only on history.
    nodes: Vec<(NodeIx, &'a Ledger)>,
    changed: Map<NodeIx, Ledger>,
    /// Bundles of this group on each node.
    count: Map<NodeIx, usize>,
}

impl<'a> Trial<'a> {
    fn ledger(&self, at: usize) -> &Ledger {
        let (node, ledger) = self.nodes[at];
        self.changed.get(&node).unwrap_or(ledger)
    }

    fn fits(&self, at: usize, request: &Resources) -> bool {
        let ledger = self.ledger(at);
        ledger.over().is_zero() && ledger.fits(request)
    }

    fn take(&mut self, at: usize, request: &Resources) {
        let (node, ledger) = self.nodes[at];
        self.changed.entry(node).or_insert_with(|| ledger.clone()).take(request);
        *self.count.entry(node).or_default() += 1;
    }

    fn count(&self, at: usize) -> usize {
        self.count.get(&self.nodes[at].0).copied().unwrap_or(0)
    }

    /// Leased, in parts of a thousand.
    fn load(&self, at: usize) -> i64 {
        let ledger = self.ledger(at);
        let total = ledger.total().cpu.0.max(1);
        ledger.leased_cpu().0.saturating_mul(1000) / total
    }

    /// All on one node: where the group is already, else where the least stays free.
    fn on_one(&self, bundles: &[(usize, &Resources)]) -> Option<Vec<(usize, NodeIx)>> {
        let fits_all = |at: &usize| {
            let mut ledger = self.ledger(*at).clone();
            ledger.over().is_zero() && bundles.iter().all(|(_, request)| ledger.take(request).is_some())
        };
        let largest = bundles.first()?.1;
        let best = (0..self.nodes.len())
            .filter(|at| self.fits(*at, largest))
            .filter(fits_all)
            .min_by_key(|at| (usize::MAX - self.count(*at), self.ledger(*at).free_cpu(), *at))?;
        Some(bundles.iter().map(|(index, _)| (*index, self.nodes[best].0)).collect())
    }

    fn packed(&mut self, bundles: &[(usize, &Resources)]) -> Option<Vec<(usize, NodeIx)>> {
        if let Some(one) = self.on_one(bundles) {
            return Some(one);
        }
        let mut places = Vec::new();
        for (index, request) in bundles {
            let best = (0..self.nodes.len()).filter(|at| self.fits(*at, request)).min_by_key(|at| {
                // Where the group is, else where much of it will fit.
                (usize::MAX - self.count(*at), Amount::ZERO - self.ledger(*at).free_cpu(), *at)
            })?;
            self.take(best, request);
            places.push((*index, self.nodes[best].0));
        }
        Some(places)
    }

    fn spread(&mut self, bundles: &[(usize, &Resources)]) -> Option<Vec<(usize, NodeIx)>> {
        let mut places = Vec::new();
        for (index, request) in bundles {
            let best = (0..self.nodes.len())
                .filter(|at| self.fits(*at, request))
                .min_by_key(|at| (self.count(*at), self.load(*at), *at))?;
            self.take(best, request);
            places.push((*index, self.nodes[best].0));
        }
        Some(places)
    }

    /// Each on another node: a matching, by augmenting paths.
    fn apart(&self, bundles: &[(usize, &Resources)]) -> Option<Vec<(usize, NodeIx)>> {
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(|at| self.count(*at) == 0).collect();
        order.sort_by_key(|at| (self.load(*at), *at));
        if order.len() < bundles.len() {
            return None;
        }
        let mut taken_by: Map<usize, usize> = Map::default();
        for at in 0..bundles.len() {
            let mut seen = Set::default();
            if !self.augment(at, bundles, &order, &mut taken_by, &mut seen) {
                return None;
            }
        }
        let mut places: Vec<_> =
            taken_by.into_iter().map(|(node, at)| (bundles[at].0, self.nodes[node].0)).collect();
        places.sort_unstable();
        Some(places)
    }

    fn augment(
        &self,
        bundle: usize,
        bundles: &[(usize, &Resources)],
        order: &[usize],
        taken_by: &mut Map<usize, usize>,
        seen: &mut Set<usize>,
    ) -> bool {
        let fitting: Vec<usize> =
            order.iter().copied().filter(|node| self.fits(*node, bundles[bundle].1)).collect();
        if let Some(free) = fitting.iter().find(|node| !taken_by.contains_key(node)) {
            taken_by.insert(*free, bundle);
            return true;
        }
        for node in fitting {
            if !seen.insert(node) {
                continue;
            }
            let Some(other) = taken_by.get(&node).copied() else { continue };
            if self.augment(other, bundles, order, taken_by, seen) {
                taken_by.insert(node, bundle);
                return true;
            }
        }
        false
    }
}

/// Larger first: by GPUs, then CPUs, then memory.
fn by_size(bundles: &mut [(usize, &Resources)]) {
    bundles.sort_by_key(|(index, request)| {
        (std::cmp::Reverse((request.gpu, request.cpu, request.memory)), *index)
    });
}

/// The bundles of a group that have no place.
fn lacking(group: &Group) -> Vec<(usize, &Resources)> {
    let bundles = group.bundles.iter().enumerate().filter(|(_, bundle)| bundle.place.is_none());
    let mut lacking: Vec<(usize, &Resources)> =
        bundles.map(|(index, bundle)| (index, &bundle.resources)).collect();
    by_size(&mut lacking);
    lacking
}

impl Head {
    /// Gives every bundle that has no place one, or none of them. True: the group is whole.
    pub(crate) fn place_group(&mut self, object: ObjectId) -> bool {
        let Some(group) = self.groups.get(object) else { return false };
        let Some(places) = self.find_places(group) else { return false };
        for (index, node) in places {
            let Some(group) = self.groups.get_mut(object) else { return false };
            let Some(state) = self.nodes.get_mut(node) else { return false };
            let bundle = &mut group.bundles[index];
            let Some(lease) = state.ledger.take(&bundle.resources) else {
                debug_assert!(false, "what was tried fits");
                return false;
            };
            let ledger = Ledger::of_lease(bundle.resources.clone(), &lease);
            bundle.place = Some(Place { node, lease, ledger, tasks: Set::default() });
        }
        true
    }

    fn find_places(&self, group: &Group) -> Option<Vec<(usize, NodeIx)>> {
        let lacking = lacking(group);
        let object = group.spec.id.result(0);
        let for_shape = crate::slab::ShapeIx(u32::MAX);
        let kept_free = |node: &crate::nodes::Node| {
            let is_own = node.kept_for.as_ref().is_some_and(|(kept_for, _)| *kept_for == object);
            !is_own
                && lacking
                    .iter()
                    .any(|(_, request)| crate::scheduler::keeps_free(node, &self.shapes, for_shape, request))
        };
        let nodes = self.nodes.iter().filter(|(_, node)| node.draining.is_none() && !kept_free(node));
        self.arrange_group(group, nodes.map(|(ix, node)| (ix, &node.ledger)).collect())
    }

    /// Where the bundles that have no place would go, by these books.
    pub(crate) fn arrange_group(
        &self,
        group: &Group,
        nodes: Vec<(NodeIx, &Ledger)>,
    ) -> Option<Vec<(usize, NodeIx)>> {
        let lacking = lacking(group);
        let mut trial = Trial { nodes, changed: Map::default(), count: Map::default() };
        for place in group.bundles.iter().filter_map(|bundle| bundle.place.as_ref()) {
            *trial.count.entry(place.node).or_default() += 1;
        }
        arrange(&mut trial, group.traits().strategy, &lacking)
    }

    /// Why not even empty nodes could hold the group; `None`: they might.
    pub(crate) fn why_impossible(&self, group: &Group) -> Option<String> {
        let bundles: Vec<&Resources> = group.bundles.iter().map(|bundle| &bundle.resources).collect();
        for (index, bundle) in bundles.iter().enumerate() {
            if !self.nodes.iter().any(|(_, node)| node.ledger.could_ever_fit(bundle)) {
                return Some(format!("bundle {index} needs {}", self.lacking(bundle)));
            }
        }
        let empty: Vec<(NodeIx, Ledger)> =
            self.nodes.iter().map(|(ix, node)| (ix, Ledger::new(node.ledger.total().clone()))).collect();
        let mut trial = Trial {
            nodes: empty.iter().map(|(ix, ledger)| (*ix, ledger)).collect(),
            changed: Map::default(),
            count: Map::default(),
        };
        let mut all: Vec<(usize, &Resources)> = bundles.iter().copied().enumerate().collect();
        by_size(&mut all);
        match group.traits().strategy {
            GroupStrategy::StrictPack => {
                let together = sum(&bundles);
                (trial.on_one(&all).is_none())
                    .then(|| format!("all its bundles on one node need {}", self.lacking(&together)))
            }
            GroupStrategy::StrictSpread => trial.apart(&all).is_none().then(|| {
                format!(
                    "its {} bundles need as many nodes, and of {} too few are large enough",
                    bundles.len(),
                    empty.len()
                )
            }),
            // Only what is certain: another order might fit where this one does not.
            strategy => {
                let mut has = Resources::default();
                for (_, ledger) in &empty {
                    add(&mut has, ledger.total());
                }
                let lacks = sum(&bundles).missing_from(&has);
                if lacks.is_empty() || arrange(&mut trial, strategy, &all).is_some() {
                    return None;
                }
                let lacks: Vec<String> =
                    lacks.iter().map(|(name, asked, has)| format!("{asked} {name} of {has}")).collect();
                Some(format!("its bundles together need {} in the cluster", lacks.join(", and ")))
            }
        }
    }

    /// What a group without place waits for.
    pub(crate) fn why_group_waits(&self, group: &Group) -> String {
        if self.nodes.alive().is_empty() {
            return "no node has joined the cluster yet".to_owned();
        }
        if let Some(problem) = self.why_impossible(group) {
            return format!("{problem}; it waits for a node to join");
        }
        let lacking: Vec<String> = group
            .bundles
            .iter()
            .enumerate()
            .filter(|(_, bundle)| bundle.place.is_none())
            .map(|(index, bundle)| format!("{} for bundle {index}", bundle.resources))
            .collect();
        let how = group.traits().strategy.name();
        format!("it waits until {} are free at once ({how})", lacking.join(", "))
    }
}

fn arrange(
    trial: &mut Trial<'_>,
    strategy: GroupStrategy,
    bundles: &[(usize, &Resources)],
) -> Option<Vec<(usize, NodeIx)>> {
    match strategy {
        GroupStrategy::Pack => trial.packed(bundles),
        GroupStrategy::Spread => trial.spread(bundles),
        GroupStrategy::StrictPack => trial.on_one(bundles),
        GroupStrategy::StrictSpread => trial.apart(bundles),
    }
}

fn sum(bundles: &[&Resources]) -> Resources {
    let mut all = Resources::default();
    for bundle in bundles {
        add(&mut all, bundle);
    }
    all
}

pub(crate) fn add(sum: &mut Resources, more: &Resources) {
    sum.cpu += more.cpu;
    sum.gpu += more.gpu;
    sum.memory += more.memory;
    for (name, amount) in &more.custom {
        sum.set_custom(name, sum.custom(name) + *amount);
    }
}
