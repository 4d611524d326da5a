//! The load: clients in pairs, of which one pays and one fulfils, in one thread.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use codius_bench::{
    connection::Connection,
    frames::{self, FulfillFrame, PrepareFrame, Said, Secret},
    process,
    statistics::percentile,
};
use ilp_packet::{TIMESTAMP_LEN, Timestamp};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

/// When packets expire, from when they are sent.
const EXPIRY_MILLIS: u64 = 29_000;
/// A connector that says nothing for so long is stuck.
const STUCK: Duration = Duration::from_secs(20);
const HELLO_ID: u32 = u32::MAX;
const ADDRESS_ID: u32 = u32::MAX - 1;
/// Times that are kept for the percentiles; more would only use memory.
const MAX_TIMES: usize = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to connect; clients take them in turn, first payer, first payee, second payer and so on
    #[arg(long = "connect", required = true)]
    addresses: Vec<SocketAddr>,
    /// Pairs of clients
    #[arg(long, default_value_t = 1)]
    pairs: usize,
    /// Packets on their way at any time, of all pairs together
    #[arg(long, default_value_t = 64)]
    in_flight: u64,
    /// Time before the measurement begins
    #[arg(long, default_value_t = 500)]
    warm_up_ms: u64,
    /// Time of the measurement
    #[arg(long, default_value_t = 2000)]
    measure_ms: u64,
    /// Measure so many packets instead
    #[arg(long)]
    packets: Option<u64>,
    /// Process of the connector, to say what it uses
    #[arg(long)]
    pid: Option<u32>,
    /// What the tokens of the clients begin with
    #[arg(long, default_value = "bench")]
    token: String,
}

/// Prints one line with what was measured.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.pairs > 0 && options.in_flight > 0, "nothing to do");
    let mut load = Load::connect(options)?;
    let warm_up = Instant::now() + Duration::from_millis(options.warm_up_ms);
    load.run(options.in_flight, |_, now| now >= warm_up)?;

    let own = std::process::id();
    let usage = |pid: Option<u32>| pid.map(process::cpu_time).transpose();
    let (cpu, own_cpu) = (usage(options.pid)?, process::cpu_time(own)?);
    let (begin, done_before) = (Instant::now(), load.fulfilled);
    load.times.clear();
    let until = begin + Duration::from_millis(options.measure_ms);
    let packets = options.packets.map(|packets| done_before + packets);
    load.run(options.in_flight, |done, now| match packets {
        Some(packets) => done >= packets,
        None => now >= until,
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    let done = load.fulfilled - done_before;
    let (cpu_after, own_cpu_after) = (usage(options.pid)?, process::cpu_time(own)?);
    let memory = options.pid.map(process::memory).transpose()?;
    load.finish()?;

    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (packets, mib) = (done as f64, |bytes: u64| bytes as f64 / 1_048_576.0);
    println!(
        "{}",
        json!({
            "fulfilled": load.fulfilled,
            "packets": done,
            "per_second": packets / seconds,
            "p50_us": micros(percentile(&mut load.times, 500)),
            "p99_us": micros(percentile(&mut load.times, 990)),
            "cpu_us": cpu.zip(cpu_after).map(|(before, after)| micros(after - before) / packets),
            "load_cpu_us": micros(own_cpu_after - own_cpu) / packets,
            "rss_mib": memory.map(|(now, _)| mib(now)),
            "peak_rss_mib": memory.map(|(_, most)| mib(most)),
        })
    );
    Ok(())
}

struct Load {
    secret: Secret,
    pairs: Vec<Pair>,
    /// Number of the next packet. The packet's request id is the same number.
    next: u64,
    fulfilled: u64,
    /// When the packets were sent that are on their way, from number `oldest` on.
    sent: VecDeque<Option<Instant>>,
    oldest: u64,
    in_flight: u64,
    times: Vec<Duration>,
    expires_at: (u64, [u8; TIMESTAMP_LEN]),
}

struct Pair {
    payer: Connection,
    payee: Connection,
    prepare: PrepareFrame,
    fulfill: FulfillFrame,
}

impl Load {
    fn connect(options: &Options) -> Result<Self> {
        let mut addresses = options.addresses.iter().cycle();
        let mut client = |name: String| -> Result<_> {
            let address = addresses.next().context("nowhere to connect")?;
            enter(*address, &format!("{}-{name}", options.token))
        };
        let mut pairs = Vec::new();
        for number in 0..options.pairs {
            let (payer, _) = client(format!("payer-{number}"))?;
            let (payee, address) = client(format!("payee-{number}"))?;
            pairs.push(Pair {
                payer,
                payee,
                prepare: PrepareFrame::new(address)?,
                fulfill: FulfillFrame::new()?,
            });
        }
        Ok(Self {
            secret: Secret::new(rand::random()),
            pairs,
            next: 0,
            fulfilled: 0,
            sent: VecDeque::new(),
            oldest: 0,
            in_flight: 0,
            times: Vec::new(),
            expires_at: (0, [b'0'; TIMESTAMP_LEN]),
        })
    }

    /// Keeps so many packets on their way until it is enough.
    fn run(&mut self, in_flight: u64, enough: impl Fn(u64, Instant) -> bool) -> Result<()> {
        let mut now = Instant::now();
        while !enough(self.fulfilled, now) {
            self.send(in_flight, now)?;
            now = self.turn()?;
        }
        Ok(())
    }

    /// Waits for what is on its way and says goodbye, so that the connector is left tidy.
    fn finish(&mut self) -> Result<()> {
        while self.in_flight > 0 {
            self.turn()?;
        }
        for pair in &mut self.pairs {
            for connection in [&mut pair.payer, &mut pair.payee] {
                connection.queue_close();
                connection.flush()?;
            }
        }
        Ok(())
    }

    fn send(&mut self, in_flight: u64, now: Instant) -> Result<()> {
        if self.in_flight >= in_flight {
            return Ok(());
        }
        let wall = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let millis = u64::try_from(wall.as_millis())?;
        if self.expires_at.0 != millis {
            let expires_at = Timestamp::from_millis(millis + EXPIRY_MILLIS).encode();
            self.expires_at = (millis, expires_at);
        }
        while self.in_flight < in_flight {
            let number = self.next;
            let pairs = u64::try_from(self.pairs.len())?;
            let pair = &mut self.pairs[usize::try_from(number % pairs)?];
            let condition = self.secret.fulfillment(number).condition();
            let frame =
                pair.prepare
                    .patch(request_id(number), number, &self.expires_at.1, &condition);
            pair.payer.queue(frame);
            self.sent.push_back(Some(now));
            self.next += 1;
            self.in_flight += 1;
        }
        for pair in &mut self.pairs {
            pair.payer.flush()?;
        }
        Ok(())
    }

    /// Waits until a socket is ready and handles what is there.
    fn turn(&mut self) -> Result<Instant> {
        let flags = |connection: &Connection| {
            if connection.has_output() {
                PollFlags::IN | PollFlags::OUT
            } else {
                PollFlags::IN
            }
        };
        let sockets = self
            .pairs
            .iter()
            .flat_map(|pair| [&pair.payer, &pair.payee]);
        let mut ready: Vec<_> = sockets
            .map(|connection| PollFd::new(connection.socket(), flags(connection)))
            .collect();
        let patience = Timespec {
            tv_sec: i64::try_from(STUCK.as_secs())?,
            tv_nsec: 0,
        };
        if poll(&mut ready, Some(&patience)).context("poll")? == 0 {
            bail!("the connector is stuck with {} packets", self.in_flight);
        }
        let ready: Vec<_> = ready.iter().map(PollFd::revents).collect();
        let now = Instant::now();
        for (number, ready) in ready.chunks_exact(2).enumerate() {
            if !ready[1].is_empty() {
                self.fulfill(number)?;
            }
            if !ready[0].is_empty() {
                self.settle(number, now)?;
            }
        }
        Ok(now)
    }

    /// The payee's turn.
    fn fulfill(&mut self, number: usize) -> Result<()> {
        let pair = &mut self.pairs[number];
        ensure!(pair.payee.fill()?, "the connector closed a connection");
        let mut answers = Vec::new();
        while let Some(message) = pair.payee.next_message()? {
            match frames::read(message)? {
                Said::Prepare { request_id, number } => answers.push((request_id, number)),
                Said::Fulfill { .. } => bail!("the payee did not ask for anything"),
            }
        }
        for (request_id, number) in answers {
            let fulfillment = self.secret.fulfillment(number);
            let frame = pair.fulfill.patch(request_id, &fulfillment);
            pair.payee.queue(frame);
        }
        pair.payee.flush()
    }

    /// The payer's turn.
    fn settle(&mut self, number: usize, now: Instant) -> Result<()> {
        let payer = &mut self.pairs[number].payer;
        ensure!(payer.fill()?, "the connector closed a connection");
        while let Some(message) = payer.next_message()? {
            let Said::Fulfill {
                request_id: id,
                fulfillment,
            } = frames::read(message)?
            else {
                bail!("the payer was asked for something");
            };
            // Only the low half of the number is in the id.
            let behind = id.wrapping_sub(request_id(self.oldest));
            let number = self.oldest + u64::from(behind);
            let sent = self
                .sent
                .get_mut(usize::try_from(behind)?)
                .and_then(Option::take)
                .context("a reply to a request that does not wait for one")?;
            ensure!(
                fulfillment == self.secret.fulfillment(number),
                "packet {number} came back with a fulfillment of another"
            );
            if self.times.len() < MAX_TIMES {
                self.times.push(now - sent);
            }
            self.fulfilled += 1;
            self.in_flight -= 1;
            while let Some(None) = self.sent.front() {
                self.sent.pop_front();
                self.oldest += 1;
            }
        }
        payer.flush()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "ids may come again")]
fn request_id(number: u64) -> u32 {
    number as u32
}

/// Connects a client and asks for its address.
fn enter(address: SocketAddr, token: &str) -> Result<(Connection, ilp_packet::Address)> {
    let mut connection = Connection::connect(address)?;
    connection.queue(&frames::hello(HELLO_ID, token)?);
    frames::check_welcome(&connection.wait_message()?, HELLO_ID)?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let expires_at =
        Timestamp::from_millis(u64::try_from(wall.as_millis())?).plus_millis(EXPIRY_MILLIS);
    connection.queue(&frames::address_request(ADDRESS_ID, expires_at)?);
    let own = frames::address(&connection.wait_message()?)?;
    connection.set_nonblocking()?;
    Ok((connection, own))
}
