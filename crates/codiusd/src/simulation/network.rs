//! Clients' accounts at the host, and what goes over their lines: packets in both directions, some of
//! them late, some lost, some without an answer.
//!
//! Each line counts what it has seen: a packet whose Fulfill has left the host is in the books, one that
//! was refused is not, and of one that was never answered nobody knows. The books are compared with that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ilp_connector::{AccountConfig, AccountId, Answer, Clock as _, Link, LinkError};
use ilp_link::stream::{PacketSender, StreamConnection};
use ilp_packet::{Address, ErrorCode, Prepare, Reject, Reply};
use ilp_stream::{AssetDetails, Config, Connection, SharedSecret};
use tokio::{sync::oneshot, time::timeout};

use super::{
    dice::Dice,
    host::Host,
    plan::Network,
    world::{OthersClock, World, lock, sleep_ms},
};

/// How long ago a refund's packet was answered, if it cannot be that the host has still to write it down.
const WRITTEN_BY_NOW_MS: u64 = 10_000;
/// No packet lives longer.
const LONGEST_PACKET: Duration = Duration::from_secs(35);

/// One client's account, and its end of the line.
pub(super) struct Client {
    pub(super) number: usize,
    line: Mutex<Line>,
}

struct Line {
    dice: Dice,
    /// No packet passes until then.
    cut_until_ms: u64,
    /// Those that packets come for, by the last segment of the address.
    connections: BTreeMap<String, StreamConnection>,
    /// Packets to the host that are not answered, by number.
    asked: BTreeMap<u64, u64>,
    /// What the host has fulfilled.
    paid: u64,
    /// What it may have in its books, without having said so.
    perhaps_paid: u64,
    /// What we have fulfilled of what came from the host.
    returned: u64,
    /// Of this what the host may not have in its books.
    perhaps_returned: u64,
    /// The packets of `returned` that the host may be writing down: amount, and when we answered.
    recent: BTreeMap<u64, (u64, Option<u64>)>,
    healed: bool,
}

/// What a line has seen, to compare the books with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) paid: u64,
    pub(super) paid_at_most: u64,
    pub(super) returned: u64,
    pub(super) returned_at_least: u64,
}

/// What becomes of a packet or of its answer.
enum Passing {
    After(u64),
    Lost,
}

impl Client {
    pub(super) fn new(number: usize, seed: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            line: Mutex::new(Line {
                dice: Dice::of(seed, 100 + number as u64),
                cut_until_ms: 0,
                connections: BTreeMap::new(),
                asked: BTreeMap::new(),
                paid: 0,
                perhaps_paid: 0,
                returned: 0,
                perhaps_returned: 0,
                recent: BTreeMap::new(),
                healed: false,
            }),
        })
    }

    pub(super) fn account(&self) -> AccountId {
        AccountId::new(format!("local.c{}", self.number))
    }

    /// As the ledger has it.
    pub(super) fn ledger_account(&self) -> String {
        format!("local:c{}", self.number)
    }

    /// Connects to a host: as the gate of local clients does.
    pub(super) fn connect(self: &Arc<Self>, world: &Arc<World>, host: &Host) {
        let mut config = AccountConfig::child(
            self.account(),
            format!("local.c{}", self.number),
            self.ledger_account(),
        )
        .unlimited();
        config.max_packet_amount = world.plan.max_packet_amount;
        // Not there if this is the first time.
        let _ = host.connector.close_account(&self.account());
        let link = ClientLink {
            world: Arc::clone(world),
            client: Arc::clone(self),
            host: host.incarnation.clone(),
        };
        let opened = host
            .connector
            .open_account(config)
            .and_then(|()| host.connector.attach_link(&self.account(), Arc::new(link)));
        if let Err(error) = opened {
            world.note(|| format!("client {} cannot connect: {error}", self.number));
        }
    }

    pub(super) fn cut(&self, until_ms: u64) {
        lock(&self.line).cut_until_ms = until_ms;
    }

    pub(super) fn heal(&self) {
        let mut line = lock(&self.line);
        line.healed = true;
        line.cut_until_ms = 0;
    }

    /// A number of this client's own.
    pub(super) fn dice<T>(&self, roll: impl FnOnce(&mut Dice) -> T) -> T {
        roll(&mut lock(&self.line).dice)
    }

    /// Nobody knows of the packets that were not answered.
    pub(super) fn host_died(&self) {
        let mut line = lock(&self.line);
        let asked: u64 = line.asked.values().sum();
        line.perhaps_paid += asked;
        line.asked.clear();
        line.forget_recent();
    }

    /// Packets that were being written down are not.
    pub(super) fn disk_failed(&self) {
        lock(&self.line).forget_recent();
    }

    pub(super) fn seen(&self, now_ms: u64) -> Seen {
        let mut line = lock(&self.line);
        line.recent
            .retain(|_, (_, answered)| answered.is_none_or(|at| at + WRITTEN_BY_NOW_MS > now_ms));
        let asked: u64 = line.asked.values().sum();
        let recent: u64 = line.recent.values().map(|(amount, _)| amount).sum();
        Seen {
            paid: line.paid,
            paid_at_most: line.paid + line.perhaps_paid + asked,
            returned: line.returned,
            returned_at_least: line.returned.saturating_sub(line.perhaps_returned + recent),
        }
    }

    /// Whether there is nothing of which nobody knows.
    pub(super) fn is_certain(&self) -> bool {
        let line = lock(&self.line);
        line.perhaps_paid == 0 && line.perhaps_returned == 0
    }

    /// A STREAM connection to a server of the host; `begin` gives it all that the first packet shall say.
    pub(super) fn stream<T>(
        self: &Arc<Self>,
        world: &Arc<World>,
        server: Address,
        secret: &SharedSecret,
        begin: impl FnOnce(&mut Connection) -> T,
    ) -> (StreamConnection, T) {
        let (segment, address) = self.fresh_address(world);
        let clock = Arc::new(OthersClock(Arc::clone(world)));
        let entropy = Box::new(Dice::of(world.plan.seed, 10_000 + world.number()));
        let mut machine = Connection::client(clock.now(), config(address), secret, server, entropy);
        let begun = begin(&mut machine);
        (self.drive(world, machine, segment), begun)
    }

    /// A STREAM server of this client's own, for a refund.
    pub(super) fn listen(
        self: &Arc<Self>,
        world: &Arc<World>,
    ) -> (StreamConnection, Address, SharedSecret) {
        let (segment, address) = self.fresh_address(world);
        let clock = Arc::new(OthersClock(Arc::clone(world)));
        let secret = SharedSecret(self.dice(Dice::bytes));
        let entropy = Box::new(Dice::of(world.plan.seed, 10_000 + world.number()));
        let machine = Connection::server(clock.now(), config(address.clone()), &secret, entropy);
        (self.drive(world, machine, segment), address, secret)
    }

    fn drive(
        self: &Arc<Self>,
        world: &Arc<World>,
        machine: Connection,
        segment: String,
    ) -> StreamConnection {
        let sender = Outgoing {
            world: Arc::clone(world),
            client: Arc::clone(self),
        };
        let clock = Arc::new(OthersClock(Arc::clone(world)));
        let connection = StreamConnection::spawn(machine, Arc::new(sender), clock);
        let mut line = lock(&self.line);
        line.connections.insert(segment, connection.clone());
        connection
    }

    fn fresh_address(&self, world: &World) -> (String, Address) {
        let segment = format!("s{}", world.number());
        let text = format!("{}.local.c{}.{segment}", Host::ADDRESS, self.number);
        let address = text.parse().expect("it is an address");
        (segment, address)
    }

    fn passing(&self, network: &Network, now_ms: u64) -> Passing {
        let mut line = lock(&self.line);
        if line.healed {
            return Passing::After(0);
        }
        if line.cut_until_ms > now_ms || line.dice.permille(network.lost) {
            return Passing::Lost;
        }
        let late = line.dice.permille(network.late);
        let most = if late {
            network.late_ms
        } else {
            network.delay_ms
        };
        Passing::After(line.dice.between(0, most))
    }
}

impl Line {
    /// What was answered lately may never be written down.
    fn forget_recent(&mut self) {
        let recent: u64 = self.recent.values().map(|(amount, _)| amount).sum();
        self.perhaps_returned += recent;
        self.recent.clear();
    }
}

fn config(address: Address) -> Config {
    Config {
        local_address: Some(address),
        asset: Some(AssetDetails {
            code: "XRP".to_owned(),
            scale: 6,
        }),
        ..Config::default()
    }
}

/// Sends a client's packets to whatever host there is.
struct Outgoing {
    world: Arc<World>,
    client: Arc<Client>,
}

#[async_trait]
impl PacketSender for Outgoing {
    async fn send(&self, prepare: Prepare) -> Reply {
        let now = OthersClock(Arc::clone(&self.world)).now();
        let lives = prepare.expires_at.since(now).min(LONGEST_PACKET);
        let (reply, answered) = oneshot::channel();
        tokio::spawn(carry(
            Arc::clone(&self.world),
            Arc::clone(&self.client),
            prepare,
            reply,
        ));
        match timeout(lives, answered).await {
            Ok(Ok(reply)) => reply,
            // As a wallet says it.
            Ok(Err(_)) => Err(Reject::new(ErrorCode::PeerUnreachable, None, "")),
            Err(_) => Err(Reject::new(ErrorCode::TransferTimedOut, None, "")),
        }
    }
}

/// Carries one packet to the host and its reply back.
async fn carry(
    world: Arc<World>,
    client: Arc<Client>,
    prepare: Prepare,
    answer: oneshot::Sender<Reply>,
) {
    let network = &world.plan.network;
    match client.passing(network, world.now_ms()) {
        Passing::After(delay_ms) => sleep_ms(delay_ms).await,
        Passing::Lost => {
            tokio::time::sleep(LONGEST_PACKET).await;
            drop(answer);
            return;
        }
    }
    let Some(host) = world.host() else { return };
    let (number, amount) = (world.number(), prepare.amount);
    if amount > 0 {
        lock(&client.line).asked.insert(number, amount);
    }
    let dispatch = host.connector.dispatch(&client.account(), None, prepare);
    let reply = tokio::select! {
        biased;
        // A process that is gone answers nothing.
        () = host.incarnation.dead.cancelled() => return,
        reply = dispatch => reply,
    };
    if amount > 0 {
        let code = reply.as_ref().err().map(|reject| reject.code);
        world.note(|| format!("client {} pays {amount}: {code:?}", client.number));
        let mut line = lock(&client.line);
        if line.asked.remove(&number).is_some() && reply.is_ok() {
            line.paid += amount;
        }
    }
    match client.passing(network, world.now_ms()) {
        Passing::After(delay_ms) => sleep_ms(delay_ms).await,
        Passing::Lost => tokio::time::sleep(LONGEST_PACKET).await,
    }
    // Whoever asked may have given up.
    let _ = answer.send(reply);
}

/// A host's end of a client's line.
struct ClientLink {
    world: Arc<World>,
    client: Arc<Client>,
    host: super::world::Incarnation,
}

impl Link for ClientLink {
    fn send(&self, prepare: Prepare, answer: Answer) {
        if self.host.is_dead() {
            return;
        }
        tokio::spawn(bring(
            Arc::clone(&self.world),
            Arc::clone(&self.client),
            self.host.clone(),
            prepare,
            answer,
        ));
    }
}

/// Brings one packet to a client and its reply back.
async fn bring(
    world: Arc<World>,
    client: Arc<Client>,
    host: super::world::Incarnation,
    prepare: Prepare,
    answer: Answer,
) {
    let network = &world.plan.network;
    let deadline = answer.deadline();
    let lost = async |answer: Answer| {
        tokio::time::sleep_until(deadline).await;
        answer.complete(Err(LinkError::TimedOut));
    };
    match client.passing(network, world.now_ms()) {
        Passing::After(delay_ms) => sleep_ms(delay_ms).await,
        Passing::Lost => return lost(answer).await,
    }
    let segment = prepare.destination.segments().last().map(str::to_owned);
    let connection = segment.and_then(|it| lock(&client.line).connections.get(&it).cloned());
    let reply = match connection {
        Some(connection) => connection.incoming(&prepare, || async { Ok(()) }).await,
        None => Err(Reject::new(ErrorCode::UnexpectedPayment, None, "")),
    };
    let (number, amount) = (world.number(), prepare.amount);
    let taken = reply.is_ok() && amount > 0;
    if taken {
        world.note(|| format!("client {} is given {amount}", client.number));
        let mut line = lock(&client.line);
        line.returned += amount;
        if host.is_dead() {
            line.perhaps_returned += amount;
        } else {
            line.recent.insert(number, (amount, None));
        }
    }
    let forgotten = || {
        let mut line = lock(&client.line);
        if line.recent.remove(&number).is_some() {
            line.perhaps_returned += amount;
        }
    };
    match client.passing(network, world.now_ms()) {
        Passing::After(delay_ms) => sleep_ms(delay_ms).await,
        Passing::Lost => {
            forgotten();
            return lost(answer).await;
        }
    }
    if tokio::time::Instant::now() >= deadline {
        forgotten();
        answer.complete(Err(LinkError::TimedOut));
        return;
    }
    if taken {
        let now = world.now_ms();
        if let Some((_, answered)) = lock(&client.line).recent.get_mut(&number) {
            *answered = Some(now);
        }
    }
    answer.complete(Ok(reply));
}
