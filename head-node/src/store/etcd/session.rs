//! What one head has to do with etcd, on a thread of its own: renewals must not wait for the head's work.
//!
//! One key says who leads. Whatever a leader writes, a mere renewal included, is a transaction that changes this key
//! too, on the condition that nobody has since its last one (rule H4). So a leader that was deposed can change nothing;
//! a head that takes leadership on the condition that the key is as it saw it, knows that nothing else has changed
//! either; and a transaction whose answer was lost is found out about by looking at the key.

use std::sync::mpsc as blocking;
use std::time::Duration;

use cluster_types::Heads;
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::members::{Members, Trouble};
use super::url::EtcdUrl;
use super::{EtcdStore, announce, history};
use crate::store::{Entry, StoreError, Table, Write};
use crate::tenure::{Moment, Tenure};

/// A leader renews so often,
const RENEW: Duration = Duration::from_millis(400);
/// acts no more when its last renewal was begun longer ago than this (which is about what an etcd needs whose own leader
/// is lost: that alone must not depose ours),
const LEADS_FOR: Duration = Duration::from_millis(3_200);
/// and another leads when it has seen nothing new for so long. What is between is for clocks that do not run equally
/// fast, and for what a leader does between looking at its clock and being heard.
const SILENT_FOR: Duration = Duration::from_millis(3_800);
/// Who stands by looks so often.
const LOOK: Duration = Duration::from_millis(200);
/// How long a head that does not lead waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the first answer may take: members that just lost their leader need a while.
const FIRST_PATIENCE: Duration = Duration::from_secs(8);
/// Etcd's own limit (`--max-txn-ops`) is 128, for each level of nested transactions.
const MAX_OPERATIONS: usize = 60;

/// Where the head stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Position {
    /// Who leads and who else there is, as far as is known.
    pub(crate) heads: Heads,
    /// Set if nobody seems to lead: what a store that would lead begins with.
    pub(crate) chance: Option<i64>,
}

/// The leader's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Leader {
    /// Another at every start of a process.
    head: String,
    /// Empty: it leads no more.
    address: String,
    /// Counts what it wrote.
    n: u64,
}

pub(super) type Answer<T> = blocking::SyncSender<Result<T, StoreError>>;

/// What the head wants of its session.
pub(super) enum Order {
    Get {
        table: Table,
        key: Vec<u8>,
        answer: Answer<Option<Vec<u8>>>,
    },
    List {
        table: Table,
        answer: Answer<Vec<Entry>>,
    },
    Commit {
        writes: Vec<Write>,
        chance: i64,
        answer: Answer<()>,
    },
    /// This head ends: another may lead at once.
    Leave {
        answer: blocking::SyncSender<()>,
    },
}

#[derive(Clone)]
pub(super) struct SessionHandle {
    orders: mpsc::UnboundedSender<Order>,
}

impl SessionHandle {
    /// Blocks until the session has done it, or found that it cannot be done.
    pub(super) fn ask<T>(&self, order: impl FnOnce(Answer<T>) -> Order) -> Result<T, StoreError> {
        let (answer, answered) = blocking::sync_channel(1);
        let ended = || StoreError::Etcd("the session with etcd has ended".to_owned());
        self.orders.send(order(answer)).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}

/// A head's session with etcd; it ends when this is dropped and no store of it is left.
pub struct Session {
    handle: SessionHandle,
    position: watch::Receiver<Position>,
    tenure: Tenure,
}

impl Session {
    /// Begins to stand by. `address` is where others reach this head.
    ///
    /// # Errors
    /// If etcd does not answer, or will have nothing to do with us.
    pub async fn open(url: &EtcdUrl, address: &str) -> Result<Self, StoreError> {
        let password = std::env::var("CLUSTER_STATE_PASSWORD").ok();
        let mut number = [0; 8];
        getrandom::fill(&mut number).map_err(|error| StoreError::Etcd(error.to_string()))?;
        let head = format!("{:016x}", u64::from_be_bytes(number));
        let (orders, received) = mpsc::unbounded_channel();
        let (news, position) = watch::channel(Position::default());
        let tenure = Tenure::not_begun();
        let mut task = Task {
            members: Members::new(url, password.as_deref()),
            watched: Members::each_alone(url, password.as_deref()),
            keys: Keys::new(&url.name),
            me: Leader { head: head.clone(), address: address.to_owned(), n: 0 },
            tenure: tenure.clone(),
            news,
            standing: Standing::By { seen: None },
        };
        let here = task.keys.heads() + &head;
        let for_announcing = Members::new(url, password.as_deref());
        let for_history = Members::new(url, password.as_deref());
        let (address, led) = (address.to_owned(), tenure.clone());
        let (opened, outcome) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| StoreError::Etcd(format!("cannot start an event loop for etcd: {error}")))?;
        let run = move || {
            runtime.block_on(async move {
                let first = task.begin().await;
                let failed = first.is_err();
                let _ = opened.send(first);
                if failed {
                    return;
                }
                tokio::select! {
                    () = task.run(received) => {}
                    () = announce::run(for_announcing, here, address) => {}
                    () = history::run(for_history, led) => {}
                }
            });
        };
        std::thread::Builder::new()
            .name("etcd".to_owned())
            .spawn(run)
            .map_err(|error| StoreError::Etcd(format!("cannot start a thread for etcd: {error}")))?;
        match outcome.await {
            Ok(Ok(())) => Ok(Self { handle: SessionHandle { orders }, position, tenure }),
            Ok(Err(error)) => Err(unreachable_at(url, error)),
            Err(_) => Err(StoreError::Etcd("the session with etcd ended at its start".to_owned())),
        }
    }

    pub(crate) fn position(&self) -> watch::Receiver<Position> {
        self.position.clone()
    }

    pub(crate) fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    /// A store that leads with its first transaction, if nobody does by then.
    pub(crate) fn candidate(&self, chance: i64) -> EtcdStore {
        EtcdStore { session: self.handle.clone(), chance }
    }

    /// This head ends: another may lead at once.
    pub(crate) fn leave(&self) {
        let (answer, left) = blocking::sync_channel(1);
        if self.handle.orders.send(Order::Leave { answer }).is_ok() {
            let _ = left.recv();
        }
    }
}

fn unreachable_at(url: &EtcdUrl, trouble: Trouble) -> StoreError {
    StoreError::Etcd(match trouble {
        Trouble::Silent(members) if members.contains("no leader") => format!(
            "the etcd at {url} has no quorum ({members}): more than half of its members must run and reach each other"
        ),
        Trouble::Silent(members) => {
            format!("no etcd answers at {url} ({members}): is it up, and are the addresses right? (--state)")
        }
        Trouble::Refused(reason) => format!("the etcd at {url} refuses: {reason}"),
    })
}

/// Under which keys a cluster's state is.
struct Keys {
    prefix: String,
}

impl Keys {
    fn new(name: &str) -> Self {
        Self { prefix: format!("{name}/") }
    }
    fn leader(&self) -> String {
        format!("{}leader", self.prefix)
    }
    fn heads(&self) -> String {
        format!("{}heads/", self.prefix)
    }
    fn table(&self, table: Table) -> Vec<u8> {
        format!("{}state/{}/", self.prefix, table.0).into_bytes()
    }
    fn entry(&self, table: Table, key: &[u8]) -> Vec<u8> {
        [&self.table(table), key].concat()
    }
}

enum Standing {
    By {
        /// The leader's key as it was seen last, and since when it has been so; 0: there is none.
        seen: Option<(i64, Instant)>,
    },
    /// The leader's key as this head wrote it.
    Leading { revision: i64 },
}

struct Task {
    members: Members,
    /// For looking who leads.
    watched: Members,
    keys: Keys,
    me: Leader,
    tenure: Tenure,
    news: watch::Sender<Position>,
    standing: Standing,
}

impl Task {
    async fn run(&mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            let next = self.next(Instant::now());
            loop {
                let order = tokio::select! {
                    biased;
                    () = sleep_until(next) => break,
                    order = orders.recv() => order,
                };
                match order {
                    Some(order) => self.carry_out(order).await,
                    None => return,
                }
            }
            match self.standing {
                Standing::By { .. } => {
                    if let Err(trouble) = self.look().await {
                        tracing::warn!(?trouble, "cannot see who leads");
                        self.news.send_if_modified(|position| position.chance.take().is_some());
                    }
                }
                Standing::Leading { revision } => {
                    if let Err(error) = self.write(revision, &[], self.tenure.until()).await {
                        tracing::error!(%error, "leads no more");
                    }
                }
            }
        }
    }

    async fn carry_out(&mut self, order: Order) {
        // Whoever asked and does not wait any more does not need the answer.
        match order {
            Order::Get { table, key, answer } => {
                let key = self.keys.entry(table, &key);
                let found = self.read(vec![TxnOp::get(key, None)]).await;
                let value =
                    found.map(|found| found.into_iter().flatten().next().map(|kv| kv.value().to_vec()));
                let _ = answer.send(value);
            }
            Order::List { table, answer } => {
                let prefix = self.keys.table(table);
                let all = TxnOp::get(prefix.clone(), Some(GetOptions::new().with_prefix()));
                let found = self.read(vec![all]).await;
                let entry = |kv: KeyValue| (kv.key()[prefix.len()..].to_vec(), kv.value().to_vec());
                let _ = answer.send(found.map(|found| found.into_iter().flatten().map(entry).collect()));
            }
            Order::Commit { writes, chance, answer } => {
                let _ = answer.send(match self.standing {
                    Standing::Leading { revision } => {
                        self.write(revision, &writes, self.tenure.until()).await
                    }
                    Standing::By { .. } => self.take(chance, &writes).await,
                });
            }
            Order::Leave { answer } => {
                self.leave().await;
                let _ = answer.send(());
            }
        }
    }

    async fn leave(&mut self) {
        let here = TxnOp::delete(self.keys.heads() + &self.me.head, None);
        let gone = match self.standing {
            Standing::Leading { revision } => {
                // Never deleted: that it changed is what tells others that what they have read is old.
                let nobody = Leader { address: String::new(), n: self.me.n + 1, ..self.me.clone() };
                let nobody = serde_json::to_vec(&nobody).unwrap_or_default();
                Txn::new()
                    .when([Compare::mod_revision(self.keys.leader(), CompareOp::Equal, revision)])
                    .and_then([TxnOp::put(self.keys.leader(), nobody, None), here])
            }
            Standing::By { .. } => Txn::new().and_then([here]),
        };
        self.step_down();
        if let Err(trouble) = self.members.transact(&gone, Instant::now() + RENEW).await {
            tracing::warn!(?trouble, "the others will notice only in a while that this head has gone");
        }
    }

    /// What each of these finds, as it was at one moment.
    async fn read(&mut self, reads: Vec<TxnOp>) -> Result<Vec<Vec<KeyValue>>, StoreError> {
        let answer = self.members.transact(&Txn::new().and_then(reads), Instant::now() + PATIENCE).await;
        answer.map(found).map_err(|trouble| StoreError::Etcd(sentence(trouble)))
    }

    /// Reads who leads and which heads there are.
    fn who(&self, how: GetOptions) -> [TxnOp; 2] {
        let all = how.clone().with_prefix();
        [TxnOp::get(self.keys.leader(), Some(how)), TxnOp::get(self.keys.heads(), Some(all))]
    }

    /// Whether there is an etcd that works; who leads is seen on the way.
    async fn begin(&mut self) -> Result<(), Trouble> {
        let who = Txn::new().and_then(self.who(GetOptions::new()));
        let answer = self.members.transact(&who, Instant::now() + FIRST_PATIENCE).await?;
        self.see(answer);
        Ok(())
    }

    /// Sees who leads, and whether anybody does. What the next best member has is good enough, though the others may be
    /// further: to have seen a renewal early is worth more, when etcd's own leader is lost at the same time, than to have
    /// seen the latest; and leadership is taken only if nothing later was.
    async fn look(&mut self) -> Result<(), Trouble> {
        let who = Txn::new().and_then(self.who(GetOptions::new().with_serializable()));
        let answer = self.watched.transact(&who, Instant::now() + PATIENCE).await?;
        // The one that was asked last may be what is gone.
        self.members.begin_with(&self.watched);
        self.see(answer);
        Ok(())
    }

    fn see(&mut self, answer: TxnResponse) {
        let [leader, heads] = two(found(answer));
        let now = Instant::now();
        let revision = leader.first().map_or(0, KeyValue::mod_revision);
        let Standing::By { seen } = &mut self.standing else { return };
        let since = match seen {
            Some((last, since)) if *last == revision => *since,
            // A member that lags behind; but an etcd may also have been restored from what it was long ago.
            Some((last, since)) if *last > revision && now.duration_since(*since) < SILENT_FOR => return,
            _ => seen.insert((revision, now)).1,
        };
        let address = leader.first().and_then(leader_of).map(|leader| leader.address).unwrap_or_default();
        let silent = address.is_empty() || now.duration_since(since) >= SILENT_FOR;
        let position = Position {
            heads: Heads { leader: if silent { String::new() } else { address }, all: addresses(&heads) },
            chance: silent.then_some(revision),
        };
        self.tell(position);
    }

    /// When to look, or to renew, again.
    fn next(&self, begun: Instant) -> Instant {
        match self.standing {
            Standing::Leading { .. } => begun + RENEW,
            Standing::By { seen: None } => begun + LOOK,
            Standing::By { seen: Some((_, since)) } => {
                // Not a moment later than it may be taken over.
                let silent = since + SILENT_FOR;
                if silent > begun { silent.min(begun + LOOK) } else { begun + LOOK }
            }
        }
    }

    /// Takes leadership, if the leader's key is as it was when this head decided to try.
    async fn take(&mut self, chance: i64, writes: &[Write]) -> Result<(), StoreError> {
        let seen = matches!(self.standing, Standing::By { seen: Some((revision, _)) } if revision == chance);
        if !seen {
            self.step_down();
            return Err(StoreError::Deposed("another head was faster".to_owned()));
        }
        self.write(chance, writes, Moment::now().after(LEADS_FOR)).await
    }

    /// Changes the leader's key and makes these changes, if nobody else changed it since `revision`. After an error this
    /// head does not lead.
    async fn write(&mut self, revision: i64, writes: &[Write], until: Moment) -> Result<(), StoreError> {
        let begun = Moment::now();
        let written = self.try_write(revision, writes, until).await;
        match &written {
            Ok(_) => self.tenure.extend(begun.after(LEADS_FOR)),
            Err(_) => {
                self.step_down();
                // If this came as a surprise, the member that was watched may be cut off from the others.
                self.watched.begin_with(&self.members);
            }
        }
        let (revision, heads) = written?;
        self.standing = Standing::Leading { revision };
        self.tell(Position { heads, chance: None });
        Ok(())
    }

    fn step_down(&mut self) {
        self.tenure.end();
        self.standing = Standing::By { seen: None };
        let all = self.news.borrow().heads.all.clone();
        self.tell(Position { heads: Heads { leader: String::new(), all }, chance: None });
    }

    /// The key's new revision, and the heads there are.
    async fn try_write(
        &mut self,
        revision: i64,
        writes: &[Write],
        until: Moment,
    ) -> Result<(i64, Heads), StoreError> {
        // No two transactions have the same number, also if one of them came to nothing as far as is known.
        self.me.n += 1;
        let key = self.keys.leader();
        let value = serde_json::to_vec(&self.me).unwrap_or_default();
        let mut then = vec![TxnOp::put(key.clone(), value, None)];
        then.extend(self.who(GetOptions::new()));
        then.extend(self.operations(writes)?);
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, revision)])
            .and_then(then)
            .or_else(self.who(GetOptions::new()));
        let left = until.left();
        if left.is_zero() {
            let reason = "it did not renew its leadership in time; was it paused?";
            return Err(StoreError::Deposed(reason.to_owned()));
        }
        let answer = self.members.transact(&txn, Instant::now() + left).await;
        let answer = answer.map_err(|trouble| StoreError::Deposed(sentence(trouble)))?;
        let done = answer.succeeded();
        let mut answers = found(answer);
        if done {
            // What the put found.
            answers.remove(0);
        }
        let [leader, heads] = two(answers);
        let known = leader.first().and_then(leader_of);
        // Also if it was not done by this attempt: by one before it, then, whose answer was lost.
        if known.as_ref() == Some(&self.me) {
            let heads = Heads { leader: self.me.address.clone(), all: addresses(&heads) };
            return Ok((leader.first().map_or(0, KeyValue::mod_revision), heads));
        }
        let by = known.map_or_else(|| "nowhere".to_owned(), |leader| leader.address);
        Err(StoreError::Deposed(format!("the cluster is led from {by}")))
    }

    /// Of each key only its last change: etcd takes no two of one key. Many are nested, since etcd counts them.
    fn operations(&self, writes: &[Write]) -> Result<Vec<TxnOp>, StoreError> {
        let mut last = std::collections::BTreeMap::new();
        for write in writes {
            let (table, key, value) = match write {
                Write::Put { table, key, value } => (table, key, Some(value)),
                Write::Delete { table, key } => (table, key, None),
            };
            last.insert(self.keys.entry(*table, key), value);
        }
        let operations = last.into_iter().map(|(key, value)| match value {
            Some(value) => TxnOp::put(key, value.clone(), None),
            None => TxnOp::delete(key, None),
        });
        let operations: Vec<_> = operations.collect();
        if operations.len() <= MAX_OPERATIONS {
            return Ok(operations);
        }
        let nested: Vec<_> =
            operations.chunks(MAX_OPERATIONS).map(|some| TxnOp::txn(Txn::new().and_then(some))).collect();
        match nested.len() {
            0..=MAX_OPERATIONS => Ok(nested),
            _ => {
                Err(StoreError::Etcd(format!("{} changes at once are more than it takes", operations.len())))
            }
        }
    }

    fn tell(&self, position: Position) {
        self.news.send_if_modified(|known| {
            let changed = *known != position;
            *known = position;
            changed
        });
    }
}

fn sentence(trouble: Trouble) -> String {
    match trouble {
        Trouble::Silent(members) => format!("etcd does not answer ({members})"),
        Trouble::Refused(reason) => format!("etcd refuses: {reason}"),
    }
}

fn leader_of(kv: &KeyValue) -> Option<Leader> {
    serde_json::from_slice(kv.value()).ok()
}

fn addresses(heads: &[KeyValue]) -> Vec<String> {
    let mut all: Vec<_> = heads.iter().filter_map(|kv| kv.value_str().ok().map(str::to_owned)).collect();
    all.sort();
    all.dedup();
    all
}

/// What each operation found; nothing, for those that did not look.
fn found(answer: TxnResponse) -> Vec<Vec<KeyValue>> {
    let each = answer.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Get(mut get) => get.take_kvs(),
        _ => Vec::new(),
    });
    each.collect()
}

fn two(found: Vec<Vec<KeyValue>>) -> [Vec<KeyValue>; 2] {
    let mut found = found.into_iter();
    [found.next().unwrap_or_default(), found.next().unwrap_or_default()]
}
