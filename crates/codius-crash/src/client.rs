//! An uploader under way: buys, extends, tops up, visits and stops, and keeps account of its money and
//! of what it was told. A host that goes away is no surprise to it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};
use codius_api::v2::{LeaseState, StopRequest};
use codius_client::{ClientError, HostClient, Key, Signer};
use codius_manifest::{ManifestHash, Upload};
use ilp_stream::SharedSecret;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    board::{Board, Up},
    plan::Doing,
    purse::Purse,
    run::Settings,
    tally::{Tally, Told},
};

/// No request of a client costs more, in units.
const PRICE_LIMIT: u64 = 1_000_000_000;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an upload or a stop may take, with a start under emulation on a busy machine.
const PLACE_TIMEOUT: Duration = Duration::from_secs(150);
const VISIT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it holds still after what it has done, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..1_200;
/// What it buys, in seconds; what is added by and by is less than what is used up, so that leases of
/// which nobody takes the rest back end, too.
const LEASE_SECS: std::ops::Range<u64> = 10..60;
const EXTENSION_SECS: std::ops::Range<u64> = 1..6;
/// What it adds by the payment pointer, in units.
const TOP_UP: std::ops::Range<u64> = 1..25_000;

/// What all clients have found, together.
#[derive(Debug, Default)]
pub(crate) struct Notebook(Mutex<Notes>);

#[derive(Debug, Default, Clone)]
pub(crate) struct Notes {
    pub(crate) tally: Tally,
    pub(crate) told: Vec<Told>,
    /// What no host may do, whatever happens to it.
    pub(crate) wrong: Vec<String>,
    pub(crate) counts: Counts,
}

/// How often what was done succeeded.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) placed: u32,
    pub(crate) extended: u32,
    pub(crate) topped_up: u32,
    pub(crate) stopped: u32,
    pub(crate) visited: u32,
    /// What had no good answer, for whatever reason.
    pub(crate) failed: u32,
}

impl Notebook {
    pub(crate) fn notes(&self) -> Notes {
        self.lock().clone()
    }

    pub(crate) fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().wrong)
    }

    fn note(&self, note: impl FnOnce(&mut Notes)) {
        note(&mut self.lock());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Place { again: bool },
    Extend,
    TopUp,
    Visit,
    Stop,
}

pub(crate) struct Client {
    number: u32,
    seed: u64,
    verbose: bool,
    random: StdRng,
    signer: Signer,
    board: Arc<Board>,
    notebook: Arc<Notebook>,
    images: Arc<Vec<String>>,
    /// What it uploads, and its hash.
    program: Option<(Value, ManifestHash)>,
    uploads: u32,
}

impl Client {
    pub(crate) fn new(
        number: u32,
        settings: &Settings,
        board: &Arc<Board>,
        notebook: &Arc<Notebook>,
        images: &Arc<Vec<String>>,
    ) -> Self {
        let seed = settings.seed;
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number.into()));
        let key = Key::from_seed(random.random());
        Self {
            number,
            seed,
            verbose: settings.verbose,
            random,
            signer: Signer::new(key),
            board: Arc::clone(board),
            notebook: Arc::clone(notebook),
            images: Arc::clone(images),
            program: None,
            uploads: 0,
        }
    }

    /// Goes on until all are told that it is over.
    pub(crate) async fn run(mut self) -> Self {
        let board = Arc::clone(&self.board);
        loop {
            let up = board.up().await;
            let turn = board.turn().await;
            if board.is_over() {
                return self;
            }
            if let Err(error) = self.step(&up).await {
                self.failed(&error);
            }
            drop(turn);
            let pause = self.random.random_range(PAUSE_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    fn failed(&self, error: &anyhow::Error) {
        // While the host is down, that is all there is to expect.
        if self.verbose {
            println!("client {}: {error:#}", self.number);
        }
        self.notebook.note(|notes| notes.counts.failed += 1);
    }

    async fn step(&mut self, up: &Up) -> Result<()> {
        let host = host(up)?;
        let state = match &self.program {
            None => None,
            Some((_, hash)) => match host.lease(hash).await {
                Ok(lease) => Some(lease.state),
                Err(ClientError::Refused { body, .. }) if body.status_code == 404 => None,
                Err(error) => return Err(error.into()),
            },
        };
        let step = match state {
            None | Some(LeaseState::Ended) => Step::Place {
                again: self.program.is_some() && self.random.random_bool(0.4),
            },
            Some(LeaseState::Starting | LeaseState::Paused) => Step::Visit,
            // Lets it go on, or lets it be.
            Some(LeaseState::Frozen) => match self.random.random_range(0..100) {
                0..20 => Step::TopUp,
                20..30 => Step::Extend,
                30..35 => Step::Stop,
                _ => Step::Visit,
            },
            Some(LeaseState::Running) => match self.random.random_range(0..100) {
                0..40 => Step::Visit,
                40..58 => Step::Extend,
                58..76 => Step::TopUp,
                76..82 => Step::Place { again: true },
                _ => Step::Stop,
            },
        };
        match step {
            Step::Place { again } => self.place(up, &host, again).await,
            Step::Extend => self.extend(up, &host).await,
            Step::TopUp => self.top_up(up).await,
            Step::Visit => self.visit(up).await,
            Step::Stop => self.stop(up).await,
        }
    }

    /// Uploads the same program again, or a new one.
    async fn place(&mut self, up: &Up, host: &HostClient, again: bool) -> Result<()> {
        if !again || self.program.is_none() {
            self.program = Some(self.new_program()?);
        }
        let (document, hash) = self.program.clone().context("it has a program")?;
        let seconds = self.random.random_range(LEASE_SECS);
        let signed = self.random.random_bool(0.8);
        let purse = Purse::open(&up.interledger, &self.board).await?;
        let _activity = self.board.begin(Doing::Uploading);
        let placed = if signed {
            let creating =
                host.create_lease(&document, seconds, &self.signer, &purse.wallet, PRICE_LIMIT);
            creating.await.map(drop)
        } else {
            let text = document.to_string();
            let uploading = host.upload(&text, seconds, &purse.wallet, PRICE_LIMIT);
            uploading.await.map(drop)
        };
        let hash = hash.to_string();
        self.heard(purse, placed, |notes| {
            notes.counts.placed += 1;
            notes.told.push(Told::Placed { hash });
        })
        .await
    }

    async fn extend(&mut self, up: &Up, host: &HostClient) -> Result<()> {
        let hash = self.hash()?;
        let seconds = self.random.random_range(EXTENSION_SECS);
        let purse = Purse::open(&up.interledger, &self.board).await?;
        let _activity = self.board.begin(Doing::Extending);
        let extended = host
            .extend_lease(&hash, seconds, &purse.wallet, PRICE_LIMIT)
            .await
            .map(drop);
        self.heard(purse, extended, |notes| notes.counts.extended += 1)
            .await
    }

    /// By the payment pointer of its lease.
    async fn top_up(&mut self, up: &Up) -> Result<()> {
        let hash = self.hash()?;
        let amount = self.random.random_range(TOP_UP);
        let answer = http()?
            .get(format!("{}/{hash}", up.api))
            .header("Accept", "application/spsp4+json")
            .timeout(ANSWER_TIMEOUT)
            .send()
            .await?
            .error_for_status()?;
        let answer: Value = answer.json().await?;
        let text = |name: &str| answer[name].as_str().context("not in the answer");
        let to = text("destination_account")?.parse()?;
        let secret: [u8; 32] = STANDARD
            .decode(text("shared_secret")?)?
            .try_into()
            .ok()
            .context("not 32 bytes")?;
        let purse = Purse::open(&up.interledger, &self.board).await?;
        let _activity = self.board.begin(Doing::ToppingUp);
        let paid = purse.pay(to, &SharedSecret(secret), amount).await;
        let tally = purse.close(false).await;
        self.notebook.note(|notes| {
            notes.tally.add(tally);
            if tally.paid > 0 {
                notes.counts.topped_up += 1;
            }
        });
        paid
    }

    async fn visit(&mut self, up: &Up) -> Result<()> {
        let hash = self.hash()?;
        let port = up.api.rsplit(':').next().context("no port")?;
        let answer = http()?
            .get(format!("http://127.0.0.1:{port}/"))
            .header("Host", format!("{hash}.localhost:{port}"))
            .timeout(VISIT_TIMEOUT)
            .send()
            .await?;
        let status = answer.status();
        let page = answer.text().await?;
        self.notebook.note(|notes| {
            if !status.is_success() {
                notes.counts.failed += 1;
            } else if page.contains(&hash.to_string()) {
                notes.counts.visited += 1;
            } else {
                notes.wrong.push(format!(
                    "a visitor of {hash} got another page: {:?}",
                    page.chars().take(300).collect::<String>()
                ));
            }
        });
        Ok(())
    }

    /// Stops its lease and takes the rest back.
    async fn stop(&mut self, up: &Up) -> Result<()> {
        let hash = self.hash()?;
        let host = host(up)?;
        let purse = Purse::open(&up.interledger, &self.board).await?;
        let listener = purse.wallet.listen();
        let request = StopRequest {
            refund: Some(listener.refund_to()),
        };
        let _activity = self.board.begin(Doing::Stopping);
        let attending = async {
            listener.attend().await;
            std::future::pending::<()>().await;
        };
        let stopped = tokio::select! {
            stopped = host.stop(&hash, &request, &self.signer) => stopped,
            () = attending => unreachable!("it waits for ever"),
        };
        let told = stopped.as_ref().ok().map(|reply| Told::Stopped {
            hash: hash.to_string(),
            used: reply.used.0,
        });
        let sent = stopped.as_ref().ok().map(|reply| reply.refunded.0);
        let received = listener.received();
        self.heard(purse, stopped.map(drop), |notes| {
            notes.counts.stopped += 1;
            notes.told.extend(told);
            if sent != Some(received) {
                notes.wrong.push(format!(
                    "the stop of {hash} has refunded {sent:?} by its answer, and {received} came"
                ));
            }
        })
        .await
    }

    /// Ends its lease, if it can, until the host says that there is none.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let up = self.board.up().await;
        let Some((_, hash)) = &self.program else {
            return Ok(());
        };
        match host(&up)?.lease(hash).await {
            // One that nobody has signed runs out by itself.
            Ok(lease) if lease.state != LeaseState::Ended && lease.owner.is_some() => {
                self.stop(&up).await
            }
            Ok(_) => Ok(()),
            Err(ClientError::Refused { body, .. }) if body.status_code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in the outcome of a request, with the money that has moved for it.
    async fn heard(
        &self,
        purse: Purse,
        outcome: Result<(), ClientError>,
        good: impl FnOnce(&mut Notes),
    ) -> Result<()> {
        let answered = match &outcome {
            Ok(()) | Err(ClientError::Refused { .. }) => true,
            Err(_) => false,
        };
        let tally = purse.close(answered).await;
        self.notebook.note(|notes| {
            notes.tally.add(tally);
            if outcome.is_ok() {
                good(notes);
            }
        });
        Ok(outcome?)
    }

    fn new_program(&mut self) -> Result<(Value, ManifestHash)> {
        self.uploads += 1;
        let image = &self.images[self.random.random_range(0..self.images.len())];
        let name = format!("crash-{}-{}-{}", self.seed, self.number, self.uploads);
        let document = json!({
            "manifest": {
                "name": name,
                "version": "1",
                "machine": "small",
                "port": "8080",
                "containers": [{ "id": "app", "image": image, "environment": { "PORT": "8080" } }],
            },
            "private": {},
        });
        let hash = Upload::parse(document.to_string().as_bytes())?.hash();
        Ok((document, hash))
    }

    fn hash(&self) -> Result<ManifestHash> {
        let (_, hash) = self.program.as_ref().context("it has no program")?;
        Ok(*hash)
    }
}

fn host(up: &Up) -> Result<HostClient> {
    Ok(HostClient::new(&up.api)?
        .answering_within(ANSWER_TIMEOUT)
        .placing_within(PLACE_TIMEOUT))
}

/// A new connection each time: what is left of an old one is the host's before it was killed.
fn http() -> Result<reqwest::Client> {
    Ok(HostClient::http().build()?)
}
