//! Random programs against a head that counts: nothing is freed while a handle lives here, everything is in the end.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What the head knows: who holds what, and what is inside what.
#[derive(Default)]
struct Head {
    /// Objects that exist, with what is inside.
    objects: BTreeMap<ObjectId, Vec<ObjectId>>,
    /// Puts that the daemon knows and the head does not.
    announced: BTreeMap<ObjectId, Vec<ObjectId>>,
    held: BTreeSet<ObjectId>,
    running: BTreeMap<TaskId, Vec<ObjectId>>,
    told: BTreeMap<ObjectId, u32>,
    answers: Vec<NodeToClient>,
    /// Somebody else's hold on the objects that the program starts with.
    others: BTreeSet<ObjectId>,
}

impl Head {
    fn receive(&mut self, message: ClientToNode) {
        match message {
            ClientToNode::Put { object, contains, .. } => {
                for inner in &contains {
                    self.assert_alive(*inner, "inside a put");
                }
                assert!(self.announced.insert(object, contains.to_vec()).is_none());
            }
            ClientToNode::Escape(list) => {
                for object in list {
                    let inside = self.announced.remove(&object).expect("put before it escapes");
                    self.objects.insert(object, inside);
                    self.held.insert(object);
                }
            }
            ClientToNode::Hold(list) => {
                for object in list {
                    self.assert_alive(object, "held");
                    assert!(self.held.insert(object), "{object} held twice");
                }
            }
            ClientToNode::Drop(list) => {
                for object in list {
                    let known = self.held.remove(&object) || self.announced.remove(&object).is_some();
                    assert!(known, "{object} dropped and not held");
                }
                self.collect();
            }
            ClientToNode::Submit(spec) => {
                for object in spec.held() {
                    self.assert_alive(object, "named by a task");
                }
                self.objects.insert(spec.id.result(0), Vec::new());
                self.held.insert(spec.id.result(0));
                self.running.insert(spec.id, spec.held().collect());
            }
            ClientToNode::Get(list) => {
                for object in list {
                    self.assert_alive(object, "asked for");
                    *self.told.entry(object).or_default() += 1;
                    self.answers.push(NodeToClient::Ready { object, value: Value::Local(at(object.local)) });
                }
            }
            ClientToNode::Release(list) => {
                for object in list {
                    let told = self.told.get_mut(&object).filter(|told| **told > 0);
                    *told.expect("released what was told") -= 1;
                }
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn assert_alive(&self, object: ObjectId, what: &str) {
        assert!(
            self.objects.contains_key(&object),
            "REF-1: {object} is {what}, and was freed or never known"
        );
    }

    /// Ends a task: its result has this inside.
    fn finish(&mut self, task: TaskId, stored: bool) {
        let Some(named) = self.running.remove(&task) else { return };
        if let Some(inside) = self.objects.get_mut(&task.result(0)) {
            *inside = named;
        }
        let value = match stored {
            true => ResultValue::Stored { size: 10_000 },
            false => ResultValue::Inline(Bytes::from_static(b"result")),
        };
        let outcome = FinishedOutcome::Ok(vec![value]);
        self.answers.push(NodeToClient::Finished { task, outcome });
        self.collect();
    }

    /// REF-2.
    fn collect(&mut self) {
        let mut reached = BTreeSet::new();
        let mut todo: Vec<ObjectId> =
            self.held.iter().chain(&self.others).chain(self.running.values().flatten()).copied().collect();
        while let Some(object) = todo.pop() {
            if reached.insert(object) {
                todo.extend(self.objects.get(&object).into_iter().flatten());
            }
        }
        self.objects.retain(|object, _| reached.contains(object));
    }
}

#[derive(Clone, Debug)]
enum Step {
    PutInline(Vec<u8>),
    PutStored(Vec<u8>),
    Submit { deps: Vec<u8>, borrowed: Vec<u8> },
    Finish { nth: u8, stored: bool },
    Clone(u8),
    Drop(u8),
    Unpack(u8),
    Want(u8),
    Read(u8),
    EndView(u8),
    Flush,
    Deliver,
    EndTask,
}

fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(any::<u8>(), 0..3);
    prop_oneof![
        1 => some().prop_map(Step::PutInline),
        1 => some().prop_map(Step::PutStored),
        1 => (some(), some()).prop_map(|(deps, borrowed)| Step::Submit { deps, borrowed }),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(nth, stored)| Step::Finish { nth, stored }),
        1 => any::<u8>().prop_map(Step::Clone),
        4 => any::<u8>().prop_map(Step::Drop),
        3 => any::<u8>().prop_map(Step::Unpack),
        1 => any::<u8>().prop_map(Step::Want),
        2 => any::<u8>().prop_map(Step::Read),
        2 => any::<u8>().prop_map(Step::EndView),
        2 => Just(Step::Flush),
        1 => Just(Step::Deliver),
        1 => Just(Step::EndTask),
    ]
}

struct World {
    core: ClientCore,
    head: Head,
    handles: Vec<ObjectId>,
    views: Vec<ObjectId>,
    /// What is inside objects, as the program sees it.
    inside: BTreeMap<ObjectId, Vec<ObjectId>>,
    next_range: u64,
}

impl World {
    fn pick(&self, n: u8) -> Option<ObjectId> {
        (!self.handles.is_empty()).then(|| self.handles[n as usize % self.handles.len()])
    }

    fn picks(&self, list: &[u8]) -> Refs {
        list.iter().filter_map(|&n| self.pick(n)).collect()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::PutInline(list) => {
                let contains = self.picks(&list);
                let id = self.core.put(inline("v"), contains.clone(), true);
                self.inside.insert(id, contains.to_vec());
                self.handles.push(id);
            }
            Step::PutStored(list) => {
                let contains = self.picks(&list);
                self.next_range += 64;
                let id = self.core.put(PutValue::Stored(at(self.next_range)), contains.clone(), true);
                self.inside.insert(id, contains.to_vec());
                self.handles.push(id);
            }
            Step::Submit { deps, borrowed } => {
                let (deps, borrowed) = (self.picks(&deps), self.picks(&borrowed));
                let Some(function) = self.pick(0) else { return };
                let named = [function].into_iter().chain(deps.iter().chain(&borrowed).copied()).collect();
                let (_, ids) = self.core.submit(&template(function, 1), args(), deps, borrowed, None);
                self.inside.insert(ids[0], named);
                self.handles.push(ids[0]);
            }
            Step::Finish { nth, stored } => {
                let running: Vec<TaskId> = self.head.running.keys().copied().collect();
                if !running.is_empty() {
                    self.head.finish(running[nth as usize % running.len()], stored);
                }
            }
            Step::Clone(n) => {
                if let Some(id) = self.pick(n) {
                    self.core.add_handle(id, HandleSource::Elsewhere);
                    self.handles.push(id);
                }
            }
            Step::Drop(n) => {
                if !self.handles.is_empty() {
                    let id = self.handles.swap_remove(n as usize % self.handles.len());
                    self.core.drop_handle(id);
                }
            }
            Step::Unpack(n) => {
                let Some(id) = self.pick(n).filter(|&id| self.core.is_here(id)) else { return };
                for inner in self.inside.get(&id).cloned().unwrap_or_default() {
                    self.core.add_handle(inner, HandleSource::Inside(id));
                    self.handles.push(inner);
                }
            }
            Step::Want(n) => {
                if let Some(id) = self.pick(n) {
                    self.core.want(id, true);
                }
            }
            Step::Read(n) => {
                if let Some(id) = self.pick(n)
                    && let Some(Reading::View(_)) = self.core.read(id)
                {
                    self.views.push(id);
                }
            }
            Step::EndView(n) => {
                if !self.views.is_empty() {
                    let id = self.views.swap_remove(n as usize % self.views.len());
                    self.core.drop_view(id);
                }
            }
            Step::Flush => self.flush(),
            Step::Deliver => self.deliver(),
            Step::EndTask => self.core.end_task_cover(),
        }
        self.check();
    }

    fn flush(&mut self) {
        for message in self.core.take_batch() {
            self.head.receive(message);
        }
    }

    fn deliver(&mut self) {
        for answer in std::mem::take(&mut self.head.answers) {
            assert_eq!(self.core.on_message(answer), None);
        }
    }

    /// REF-1: whatever has a handle here is alive at the head, if the head can know it.
    fn check(&self) {
        for &id in &self.handles {
            assert!(self.core.knows(id));
            let unsent = id.client == ME && !self.head.objects.contains_key(&id);
            if !unsent {
                self.head.assert_alive(id, "a handle's");
            }
        }
        for &id in &self.views {
            let own = self.core.own_ranges.contains_key(&id);
            assert!(own || self.head.told.get(&id).is_some_and(|told| *told > 0), "P1: {id} is viewed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_freed_too_early_and_everything_in_the_end(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World {
            core: core(),
            head: Head::default(),
            handles: Vec::new(),
            views: Vec::new(),
            inside: BTreeMap::new(),
            next_range: 0,
        };
        // A container of the other client's, with two objects inside.
        for n in 1..=3 {
            world.head.objects.insert(foreign(n), Vec::new());
        }
        world.head.objects.insert(foreign(1), vec![foreign(2), foreign(3)]);
        world.inside.insert(foreign(1), vec![foreign(2), foreign(3)]);
        world.head.others.insert(foreign(1));
        world.core.add_handle(foreign(1), HandleSource::Elsewhere);
        world.handles.push(foreign(1));
        world.flush();
        world.head.others.clear();
        for step in steps {
            world.take(step);
        }
        // The end of the program: everything it submitted finishes, everything it had goes.
        world.flush();
        for task in world.head.running.keys().copied().collect::<Vec<_>>() {
            world.head.finish(task, true);
        }
        world.deliver();
        for id in std::mem::take(&mut world.views) {
            world.core.drop_view(id);
        }
        for id in std::mem::take(&mut world.handles) {
            world.core.drop_handle(id);
        }
        world.flush();
        world.deliver();
        world.flush();
        prop_assert_eq!(world.core.known(), 0);
        prop_assert!(world.core.contains.is_empty() && world.core.unfinished.is_empty());
        prop_assert!(world.head.objects.is_empty(), "REF-2: {:?}", world.head.objects);
        prop_assert!(world.head.announced.is_empty() && world.head.held.is_empty());
        prop_assert!(world.head.told.values().all(|told| *told == 0), "{:?}", world.head.told);
    }
}
