//! What clients do: pay for requests, top leases up, stop them; some pay too little, ask twice, or go away
//! in the middle.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{body::to_bytes, http::StatusCode, response::IntoResponse};
use base64::{Engine, engine::general_purpose::STANDARD};
use codius_api::v2::RefundTo;
use codius_ledger::{OrderId, RequestDigest, Seconds, StoredResponse};
use codius_manifest::{ManifestHash, Upload};
use codius_signature::KeyId;
use ilp_link::stream::StreamConnection;
use ilp_packet::Address;
use ilp_stream::{SharedSecret, StreamErrorCode, StreamId};
use tokio::time::timeout;

use super::{
    dice::Dice,
    driver::short,
    host::Host,
    network::Client,
    world::{World, lock, sleep_ms},
};
use crate::{
    api::end_and_refund,
    leases::{ReplyForm, StopError},
    orders::{PaidRequest, What},
    refund::Destination,
    spsp::{Payee, Terms},
};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(220);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a client asks again that was not answered.
const MAX_TRIES: u32 = 6;
const READY: u8 = 0xff;

/// How a client pays for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    Honest,
    /// Offers less than the price.
    Mean,
    /// Would pay more.
    Generous,
    /// Sends the paid request twice at once.
    Hasty,
    /// Stops answering so many milliseconds after the connection is open.
    Vanishes(u64),
    /// Hangs up on the paid request after so many milliseconds, and asks again.
    Impatient(u64),
}

impl Habit {
    pub(super) fn of(dice: &mut Dice) -> Self {
        match dice.below(12) {
            0 => Self::Mean,
            1 => Self::Generous,
            2 => Self::Hasty,
            3 => Self::Vanishes(dice.between(0, 3000)),
            4 => Self::Impatient(dice.between(0, 8000)),
            _ => Self::Honest,
        }
    }
}

/// Why there was no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut;

/// Where to pay, and how much.
struct Demand {
    address: Address,
    secret: SharedSecret,
    price: u64,
}

/// One paid request, as its client knows it.
#[derive(Clone)]
pub(super) struct Purchase {
    pub(super) request: PaidRequest,
    pub(super) answer: Option<StoredResponse>,
}

/// Who a client is when it signs.
pub(super) fn key_of(client: &Client) -> KeyId {
    KeyId::from_bytes([u8::try_from(client.number + 1).unwrap_or(1); 32])
}

pub(super) fn upload_request(
    client: &Client,
    upload: &Arc<Upload>,
    secs: u64,
    signed: bool,
) -> PaidRequest {
    let token: [u8; 16] = client.dice(Dice::bytes);
    let digest = RequestDigest::of("POST", "/api/v2/leases", "", &token);
    PaidRequest {
        id: OrderId::of_token(&token),
        digest,
        duration: Seconds(secs),
        what: What::Upload(Arc::clone(upload)),
        owner: signed.then(|| key_of(client)),
        refund_to: None,
        form: ReplyForm::V2,
    }
}

pub(super) fn extend_request(client: &Client, hash: ManifestHash, secs: u64) -> PaidRequest {
    let token: [u8; 16] = client.dice(Dice::bytes);
    PaidRequest {
        id: OrderId::of_token(&token),
        digest: RequestDigest::of("POST", "/extend", "", &token),
        duration: Seconds(secs),
        what: What::Extend(hash),
        owner: None,
        refund_to: None,
        form: ReplyForm::V1,
    }
}

/// Sends a request to whatever host there is; it may die before it answers.
async fn ask<T, F: Future<Output = T>>(
    world: &World,
    request: impl FnOnce(Arc<Host>) -> F,
) -> Result<T, Cut> {
    let host = world.host().ok_or(Cut)?;
    let dead = host.incarnation.dead.clone();
    tokio::select! {
        biased;
        () = dead.cancelled() => Err(Cut),
        answer = timeout(PATIENCE, request(host)) => answer.map_err(|_| {
            world.violation("a request was not answered");
            Cut
        }),
    }
}

/// What comes back of a paid request.
enum Told {
    Answer(StoredResponse),
    Pay(Demand),
    /// Refused without anything having been stored.
    Refused(StatusCode),
}

async fn send_request(world: &World, request: &PaidRequest) -> Result<Told, Cut> {
    let request = request.clone();
    let handled = ask(
        world,
        |host| async move { host.orders.handle(request).await },
    )
    .await?;
    let error = match handled {
        Ok(answer) => return Ok(Told::Answer(answer)),
        Err(error) => error,
    };
    let response = error.into_response();
    if response.status() != StatusCode::PAYMENT_REQUIRED {
        return Ok(Told::Refused(response.status()));
    }
    let demand = response
        .headers()
        .get("pay")
        .and_then(|pay| pay.to_str().ok())
        .and_then(demand);
    let status = response.status();
    let _ = to_bytes(response.into_body(), 1 << 16).await;
    Ok(demand.map_or(Told::Refused(status), Told::Pay))
}

fn demand(header: &str) -> Option<Demand> {
    let mut words = header.split(' ').skip(1);
    let address = words.next()?.parse().ok()?;
    let secret = STANDARD.decode(words.next()?).ok()?.try_into().ok()?;
    Some(Demand {
        address,
        secret: SharedSecret(secret),
        price: words.next()?.parse().ok()?,
    })
}

/// Pays for a request and waits for its answer.
pub(super) async fn buy(
    world: Arc<World>,
    client: Arc<Client>,
    mut purchase: Purchase,
    habit: Habit,
) -> Purchase {
    let mut paying: Option<(StreamConnection, u64)> = None;
    for _ in 0..MAX_TRIES {
        let told = if paying.is_some() {
            paid_request(&world, &purchase.request, habit).await
        } else {
            send_request(&world, &purchase.request).await
        };
        match told {
            Err(Cut) => {
                // The host, the line or the client's own patience.
                paying = None;
                let pause = client.dice(|dice| dice.between(100, 20_000));
                sleep_ms(pause).await;
            }
            Ok(Told::Refused(status)) => {
                let id = purchase.request.id;
                world.note(|| format!("order {} refused: {status}", &id.to_string()[..6]));
                if status.is_server_error() {
                    let pause = client.dice(|dice| dice.between(1000, 20_000));
                    sleep_ms(pause).await;
                    continue;
                }
                break;
            }
            Ok(Told::Answer(answer)) => {
                world.answered(&purchase, &answer);
                purchase.answer = Some(answer);
                break;
            }
            Ok(Told::Pay(demand)) => {
                let Some(connection) = connect(&world, &client, &demand, habit).await else {
                    break;
                };
                paying = Some((connection, demand.price));
                if let Habit::Vanishes(after) = habit {
                    sleep_ms(after).await;
                    return purchase;
                }
            }
        }
    }
    if let Some((connection, _)) = paying {
        close(&connection).await;
    }
    purchase
}

async fn paid_request(world: &World, request: &PaidRequest, habit: Habit) -> Result<Told, Cut> {
    match habit {
        Habit::Hasty => {
            let (one, other) = tokio::join!(
                biased;
                send_request(world, request),
                send_request(world, request)
            );
            if let (Ok(Told::Answer(one)), Ok(Told::Answer(other))) = (&one, &other)
                && one != other
            {
                world.violation(format!(
                    "one request was answered in two ways: {one:?}, {other:?}"
                ));
            }
            one
        }
        Habit::Impatient(after) => {
            let patience = Duration::from_millis(after);
            match timeout(patience, send_request(world, request)).await {
                Ok(told) => told,
                Err(_) => send_request(world, request).await,
            }
        }
        Habit::Honest | Habit::Mean | Habit::Generous | Habit::Vanishes(_) => {
            send_request(world, request).await
        }
    }
}

/// Opens the connection that pays, and waits until the host has seen it.
async fn connect(
    world: &Arc<World>,
    client: &Arc<Client>,
    demand: &Demand,
    habit: Habit,
) -> Option<StreamConnection> {
    let offered = match habit {
        Habit::Mean => demand.price / 2,
        Habit::Generous => demand.price * 3 + 7,
        Habit::Honest | Habit::Hasty | Habit::Vanishes(_) | Habit::Impatient(_) => demand.price,
    };
    let takes_back = client.dice(|dice| !dice.permille(150));
    let (connection, stream) = client.stream(
        world,
        demand.address.clone(),
        &demand.secret,
        |machine| -> Option<StreamId> {
            let stream = machine.open_stream().ok()?;
            machine.set_send_max(stream, offered).ok()?;
            if takes_back {
                machine.set_receive_max(stream, offered).ok()?;
            }
            Some(stream)
        },
    );
    let stream = stream?;
    let seen = connection.until(|_, observed| {
        let ready = observed
            .data
            .get(&stream)
            .is_some_and(|data| data.contains(&READY));
        (ready || observed.closed.is_some()).then_some(ready)
    });
    match timeout(CONNECT_TIMEOUT, seen).await {
        Ok(true) => Some(connection),
        Ok(false) => None,
        Err(_) => {
            close(&connection).await;
            None
        }
    }
}

async fn close(connection: &StreamConnection) {
    let closing = connection.close(StreamErrorCode::NoError, "");
    let _ = timeout(CLOSE_TIMEOUT, closing).await;
}

/// Asks again with a token that was answered: the answer is the same, and nothing else happens.
pub(super) async fn ask_again(world: Arc<World>, purchase: Purchase) {
    let Ok(Told::Answer(answer)) = send_request(&world, &purchase.request).await else {
        return;
    };
    world.answered(&purchase, &answer);
    if purchase.answer.is_some_and(|before| before != answer) {
        world.violation("a repeated request got another answer");
    }
}

/// Adds money to a lease by its payment pointer: so often so much, with pauses.
pub(super) async fn top_up(
    world: Arc<World>,
    client: Arc<Client>,
    hash: ManifestHash,
    amount: u64,
    times: u64,
    pause_ms: u64,
) {
    let terms = Terms {
        payee: Payee::Lease(hash),
        receipts: None,
    };
    let Ok(Ok(to)) = ask(&world, |host| async move { host.spsp.destination(&terms) }).await else {
        return;
    };
    let (connection, stream) = client.stream(
        &world,
        to.address,
        &to.shared_secret,
        |machine| -> Option<StreamId> {
            let stream = machine.open_stream().ok()?;
            machine.set_send_max(stream, amount).ok()?;
            Some(stream)
        },
    );
    let Some(stream) = stream else { return };
    for round in 1..=times {
        let goal = amount.saturating_mul(round);
        let went_on = connection.with(|machine, _| machine.set_send_max(stream, goal).is_ok());
        let sent = connection.until(|machine, observed| {
            let sent = machine.stream_sent(stream).unwrap_or(goal) >= goal;
            let over = observed.closed.is_some() || observed.ended.contains_key(&stream);
            (sent || over).then_some(!over)
        });
        if !went_on || timeout(Duration::from_secs(40), sent).await != Ok(true) {
            break;
        }
        sleep_ms(pause_ms).await;
    }
    if client.dice(|dice| !dice.permille(200)) {
        close(&connection).await;
    }
}

/// Ends a lease as its owner.
pub(super) async fn stop(
    world: Arc<World>,
    client: Arc<Client>,
    hash: ManifestHash,
    with_refund: bool,
) {
    let key = key_of(&client);
    let listener = with_refund.then(|| client.listen(&world));
    let to = listener.as_ref().and_then(|(_, address, secret)| {
        Destination::try_from(&RefundTo {
            destination_account: address.to_string(),
            shared_secret: STANDARD.encode(secret.0),
        })
        .ok()
    });
    if let Some((connection, _, _)) = &listener {
        tokio::spawn(attend(connection.clone()));
    }
    let stopped = ask(&world, |host| async move {
        host.leases.owned(&hash, &key).await?;
        // In a task of its own, as the handler does.
        let stopping = host.leases.tasks.spawn({
            let host = Arc::clone(&host);
            async move { end_and_refund(&host.leases, &host.refunds, hash, &key, to).await }
        });
        Ok::<_, StopError>(stopping.await)
    })
    .await;
    let reply = match stopped {
        Ok(Ok(Ok(Ok(reply)))) => reply,
        Ok(Ok(Ok(Err(error)))) | Ok(Err(error)) => {
            world.note(|| format!("stop of {} refused: {error}", short(&hash)));
            return;
        }
        Ok(Ok(Err(_))) => {
            world.violation("a stop has panicked");
            return;
        }
        Err(Cut) => return,
    };
    world.note(|| {
        format!(
            "lease {} stopped by client {}: used {}, refunded {}, owed {}",
            short(&hash),
            client.number,
            reply.used,
            reply.refunded,
            reply.owed
        )
    });
    if let Some(wrong) = lock(&world.model).stopped(&hash, reply.used.0) {
        world.violation(wrong);
    }
}

/// Takes all that comes.
async fn attend(connection: StreamConnection) {
    loop {
        let opened = connection.until(|machine, observed| {
            if observed.closed.is_some() {
                return Some(None);
            }
            let new = machine
                .open_streams()
                .find(|stream| machine.receive_max(*stream) == Some(0));
            new.map(Some)
        });
        let Some(stream) = opened.await else { return };
        let _ = connection.with(|machine, _| machine.set_receive_max(stream, u64::MAX));
    }
}
