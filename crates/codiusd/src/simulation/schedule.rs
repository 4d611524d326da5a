//! One schedule: what happens one after the other, and how it ends.
//!
//! ```text
//! begin ──▶ steps: an action, a pause ──▶ healed: nothing fails any more ──▶ at rest ──▶ started again ──▶ over
//! ```

use std::sync::Arc;

use codius_manifest::{ManifestHash, Upload};
use codius_store::simulated::Disk;
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    Outcome,
    client::{self, Habit, Purchase},
    dice::Dice,
    driver::short,
    host::Host,
    network::Client,
    plan::Plan,
    world::{World, lock, sleep_ms},
};

const CLIENTS: usize = 3;
/// The longest between two looks at what runs.
const LOOK_MS: u64 = 1000;
/// So long after the last action everything must have come to its end.
const REST_MS: u64 = 900_000;

struct Schedule {
    world: Arc<World>,
    dice: Dice,
    programs: Vec<Arc<Upload>>,
    clients: JoinSet<Option<Purchase>>,
    purchases: Vec<Purchase>,
}

pub(super) async fn run(seed: u64, disk: Disk, shown: bool) -> Outcome {
    let plan = Plan::of(seed);
    let index = disk.look(|connection| {
        connection.execute_batch("CREATE INDEX by_transaction ON postings (transaction_id)")
    });
    index.expect("there is memory for an index");
    let clients = (0..CLIENTS)
        .map(|number| Client::new(number, seed))
        .collect();
    let world = World::new(plan, disk, clients, shown);
    world.note(|| format!("{:?}", world.plan));
    lock(&world.model).expect_writes(world.plan.write_ms());
    tokio::spawn(keep(Arc::clone(&world)));
    let mut schedule = Schedule {
        world: Arc::clone(&world),
        dice: Dice::of(seed, 2),
        programs: programs(),
        clients: JoinSet::new(),
        purchases: Vec::new(),
    };
    for _ in 0..world.plan.steps {
        schedule.step().await;
        let pause = schedule.pause();
        schedule.pass(pause).await;
        world.check_all(false);
        if !world.violations().is_empty() {
            break;
        }
    }
    if world.violations().is_empty() {
        schedule.come_to_rest().await;
    }
    let leases = lock(&world.model).ended;
    Outcome {
        seed,
        trace: world.trace_hash(),
        violations: world.violations(),
        leases,
    }
}

/// Starts the host whenever there is none, as the operator's service manager does.
async fn keep(world: Arc<World>) {
    let mut dice = Dice::of(world.plan.seed, 3);
    loop {
        let incarnation = world.begin();
        world.note(|| format!("host {} starts", incarnation.number));
        let started = tokio::select! {
            biased;
            () = incarnation.dead.cancelled() => None,
            started = Host::start(&world, incarnation.clone()) => Some(started),
        };
        match started {
            Some(Ok(host)) => {
                for client in &world.clients {
                    client.connect(&world, &host);
                }
                world.note(|| format!("host {} is up", incarnation.number));
                world.up(host);
                incarnation.dead.cancelled().await;
            }
            Some(Err(error)) => {
                world.kill(&format!("cannot start: {error:#}"));
            }
            None => {}
        }
        let healed = lock(&world.mood).healed;
        let down_ms = if healed || dice.permille(500) {
            dice.between(0, 300)
        } else {
            dice.between(300, 20_000)
        };
        sleep_ms(down_ms).await;
    }
}

impl Schedule {
    fn pause(&mut self) -> u64 {
        match self.dice.below(6) {
            0 => 0,
            1 => self.dice.between(0, 200),
            2 | 3 => self.dice.between(0, 3000),
            4 => self.dice.between(0, 12_000),
            _ => self.dice.between(0, 40_000),
        }
    }

    /// Lets time pass, and looks at what runs meanwhile.
    async fn pass(&mut self, mut millis: u64) {
        while millis > 0 {
            let some = millis.min(LOOK_MS);
            sleep_ms(some).await;
            self.world.check();
            millis -= some;
        }
        while let Some(done) = self.clients.try_join_next() {
            self.done(done);
        }
    }

    fn done(&mut self, done: Result<Option<Purchase>, tokio::task::JoinError>) {
        if let Ok(Some(purchase)) = done {
            self.purchases.push(purchase);
        }
    }

    fn client(&mut self) -> Arc<Client> {
        let at = usize::try_from(self.dice.below(CLIENTS as u64)).unwrap_or_default();
        Arc::clone(&self.world.clients[at])
    }

    fn program(&mut self) -> Arc<Upload> {
        let at = usize::try_from(self.dice.below(self.programs.len() as u64)).unwrap_or_default();
        Arc::clone(&self.programs[at])
    }

    /// A program, of those that run if there are any.
    fn hash(&mut self) -> ManifestHash {
        let pods = lock(&self.world.machines).hashes();
        if pods.is_empty() || self.dice.permille(100) {
            return self.program().hash();
        }
        self.dice.pick(&pods)
    }

    async fn step(&mut self) {
        let world = Arc::clone(&self.world);
        let client = self.client();
        match self.dice.below(if world.plan.clocks { 30 } else { 26 }) {
            0..=7 => {
                let program = self.program();
                let secs = self.dice.between(1, 100);
                let signed = self.dice.permille(800);
                let request = client::upload_request(&client, &program, secs, signed);
                let habit = Habit::of(&mut self.dice);
                let id = request.id.to_string();
                world.note(|| {
                    let hash = short(&program.hash());
                    format!(
                        "client {} uploads {hash} for {secs} s as {habit:?}: order {}",
                        client.number,
                        &id[..6]
                    )
                });
                self.buy(client, request, habit);
            }
            8..=11 => {
                let (hash, secs) = (self.hash(), self.dice.between(1, 60));
                let request = client::extend_request(&client, hash, secs);
                let habit = Habit::of(&mut self.dice);
                world.note(|| {
                    format!(
                        "client {} extends {} by {secs} s as {habit:?}",
                        client.number,
                        short(&hash)
                    )
                });
                self.buy(client, request, habit);
            }
            12..=14 => {
                let hash = self.hash();
                let (amount, times) = (self.dice.between(1, 300), self.dice.between(1, 3));
                let pause = self.dice.between(0, 4000);
                world.note(|| {
                    format!(
                        "client {} tops {} up by {amount}, {times} times",
                        client.number,
                        short(&hash)
                    )
                });
                self.clients.spawn(async move {
                    client::top_up(world, client, hash, amount, times, pause).await;
                    None
                });
            }
            15 | 16 => {
                // As `codius run` does: so much a second, until it stops.
                let hash = self.hash();
                let (amount, times) = (self.dice.between(1, 20), self.dice.between(2, 20));
                world.note(|| {
                    format!(
                        "client {} pays {amount} a second for {}",
                        client.number,
                        short(&hash)
                    )
                });
                self.clients.spawn(async move {
                    client::top_up(world, client, hash, amount, times, 1000).await;
                    None
                });
            }
            17 | 18 => {
                let (hash, with_refund) = (self.hash(), self.dice.permille(700));
                world.note(|| format!("client {} stops {}", client.number, short(&hash)));
                self.clients.spawn(async move {
                    client::stop(world, client, hash, with_refund).await;
                    None
                });
            }
            19 => {
                if let Some(purchase) = self.any_purchase() {
                    self.clients.spawn(async move {
                        client::ask_again(world, purchase).await;
                        None
                    });
                }
            }
            20 => {
                if world.plan.network.lost > 0 {
                    let until = world.now_ms() + self.dice.between(100, 20_000);
                    world.note(|| format!("the line of client {} is cut", client.number));
                    client.cut(until);
                }
            }
            21 => {
                if let Some(host) = world.host() {
                    client.connect(&world, &host);
                }
            }
            22 => {
                if world.plan.disk.fills_up {
                    let full = !lock(&world.mood).full;
                    world.note(|| {
                        format!("the disk {}", if full { "fills up" } else { "has room" })
                    });
                    lock(&world.mood).full = full;
                }
            }
            23..=25 => self.trouble().await,
            _ => self.turn_clocks(),
        }
    }

    /// What happens to the host and its pods.
    async fn trouble(&mut self) {
        let world = Arc::clone(&self.world);
        let pods = lock(&world.machines).hashes();
        match self.dice.below(6) {
            0 | 1 if world.plan.kills => world.kill("killed"),
            2 if world.plan.kills => self.restart().await,
            3 if world.plan.kills && self.dice.permille(400) => world.reboot(),
            4 if world.plan.pod_trouble > 0 && !pods.is_empty() => {
                world.pod_exits(&self.dice.pick(&pods), None);
            }
            5 if world.plan.pod_trouble > 0 && !pods.is_empty() => {
                world.pod_lost(&self.dice.pick(&pods), None);
            }
            _ => {}
        }
    }

    /// The host is told to end, and is started again.
    async fn restart(&mut self) {
        let Some(host) = self.world.host() else {
            return;
        };
        let stop_pods = self.dice.permille(300);
        self.world
            .note(|| format!("the host is told to end; pods stop: {stop_pods}"));
        let ended = host.shut_down(stop_pods).await;
        let why = if ended {
            "ended"
        } else {
            "did not end in time"
        };
        if !host.incarnation.is_dead() {
            self.world.kill(why);
        }
    }

    fn turn_clocks(&mut self) {
        let by = match self.dice.below(5) {
            0 => 1000,
            1 => -1000,
            2 => i64::try_from(self.dice.between(0, 7_200_000)).unwrap_or_default(),
            _ => -i64::try_from(self.dice.between(0, 90_000)).unwrap_or_default(),
        };
        let all = self.dice.permille(700);
        self.world
            .note(|| format!("the wall clock jumps by {by} ms; everyone's: {all}"));
        let mut clocks = lock(&self.world.clocks);
        clocks.host_ahead_ms += by;
        clocks.others_ahead_ms = if all {
            clocks.others_ahead_ms + by
        } else {
            clocks.others_ahead_ms
        };
    }

    fn any_purchase(&mut self) -> Option<Purchase> {
        (!self.purchases.is_empty()).then(|| {
            let at = usize::try_from(self.dice.below(self.purchases.len() as u64)).unwrap_or(0);
            self.purchases[at].clone()
        })
    }

    fn buy(&mut self, client: Arc<Client>, request: crate::orders::PaidRequest, habit: Habit) {
        let world = Arc::clone(&self.world);
        self.clients.spawn(async move {
            let purchase = Purchase {
                request,
                answer: None,
            };
            Some(client::buy(world, client, purchase, habit).await)
        });
    }

    /// Nothing fails any more, and nobody begins anything: all that was begun comes to its end.
    async fn come_to_rest(&mut self) {
        let world = Arc::clone(&self.world);
        world.note(|| "nothing fails any more".to_owned());
        {
            let mut mood = lock(&world.mood);
            mood.healed = true;
            mood.full = false;
        }
        lock(&world.machines).healed = true;
        for client in &world.clients {
            client.heal();
        }
        {
            let mut clocks = lock(&world.clocks);
            clocks.others_ahead_ms = clocks.host_ahead_ms;
        }
        let begun = world.now_ms();
        loop {
            self.pass(5000).await;
            let is_over = self.clients.is_empty()
                && world.is_up()
                && lock(&world.model).live_hashes().is_empty()
                && lock(&world.machines).hashes().is_empty();
            if is_over || world.now_ms() - begun > REST_MS || !world.violations().is_empty() {
                break;
            }
        }
        world.check_all(false);
        // Payers' connections end, and what waits for them.
        self.pass(70_000).await;
        world.check_all(false);
        // What came too late is found at the next start.
        self.restart().await;
        self.pass(5000).await;
        let host = world.host();
        world.check_rest(host.as_ref());
    }
}

/// What clients upload: some with a port, some without.
fn programs() -> Vec<Arc<Upload>> {
    let program = |name: &str, port: Option<u16>| {
        let mut manifest = json!({
            "name": name, "version": "1", "machine": "small",
            "containers": [{ "id": "one", "image": "registry.example/hello:1" }],
        });
        if let Some(port) = port {
            manifest["port"] = json!(port.to_string());
        }
        let posted = json!({ "manifest": manifest, "private": {} }).to_string();
        Arc::new(Upload::parse(posted.as_bytes()).expect("it is a valid manifest"))
    };
    vec![
        program("one", Some(8080)),
        program("two", Some(8080)),
        program("three", None),
        program("four", None),
    ]
}
