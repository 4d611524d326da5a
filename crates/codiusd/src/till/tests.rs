//! A shop in memory: the till behind a real connector and BTP server, paid over loopback.

use std::{sync::Mutex, time::Instant};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::put};
use codius_bench::tap::Tap;
use codius_client::{ClientError, HostClient, PaidAnswer, Wallet};
use codius_ledger::Asset;
use codius_manifest::ManifestHash;
use codius_testkit::Packages;
use http::HeaderMap;
use ilp_connector::{Clock, ConnectorConfig, Ledger, Movement, Recorded, SystemClock};
use ilp_link::{BtpClient, BtpServer, LocalGate, RequestHandler};
use ilp_stream::SharedSecret;
use tokio::{net::TcpListener, time::sleep};

use super::*;

const PRICE: u64 = 1_234;
/// More than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for what must not happen to have happened.
const A_WHILE: Duration = Duration::from_millis(200);
const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

#[derive(Default)]
struct MemoryLedger(Mutex<Vec<Movement>>);

impl Ledger for MemoryLedger {
    fn record(&self, movement: Movement, recorded: Recorded) {
        self.0.lock().unwrap().push(movement);
        recorded.complete(Ok(()));
    }
}

impl MemoryLedger {
    /// What an order has: paid and not sent back.
    fn held(&self, id: OrderId) -> i128 {
        let account: LedgerAccount = Account::Order(id).to_string().into();
        let movements = self.0.lock().unwrap();
        let signed = movements.iter().map(|it| match () {
            () if it.credit == account => i128::from(it.amount),
            () if it.debit == account => -i128::from(it.amount),
            () => 0,
        });
        signed.sum()
    }
}

/// What becomes of an order when its price is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Success,
    Failure,
}

struct Shop {
    till: Arc<Till>,
    ledger: Arc<MemoryLedger>,
    interledger: std::net::SocketAddr,
    api: String,
}

struct Counter {
    till: Arc<Till>,
    outcome: Outcome,
    closing: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Shop {
    async fn open(outcome: Outcome) -> (Self, Arc<Counter>) {
        codius_testkit::install_crypto();
        let ledger = Arc::new(MemoryLedger::default());
        let connector = Connector::new(
            ConnectorConfig::new("test.host".parse().unwrap(), "XRP", 9),
            ledger.clone(),
            Arc::new(SystemClock),
        );
        let asset = Asset::new("XRP", 9).unwrap();
        let till = Till::open(&connector, &[7; 32], asset).unwrap();
        let gate = LocalGate::new(&connector, "local", "local:clients".into(), 8);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let interledger = listener.local_addr().unwrap();
        BtpServer::new(connector.clone()).listen(listener, Arc::new(gate));

        let counter = Arc::new(Counter {
            till: Arc::clone(&till),
            outcome,
            closing: Mutex::default(),
        });
        let router = Router::new()
            .route("/pods", put(sell))
            .with_state(Arc::clone(&counter));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, router).await });
        let shop = Self {
            till,
            ledger,
            interledger,
            api,
        };
        (shop, counter)
    }

    async fn buy(
        &self,
        client: &HostClient,
        interledger: std::net::SocketAddr,
    ) -> Result<PaidAnswer<codius_api::PodReply>, ClientError> {
        let hash: ManifestHash = HASH.parse().unwrap();
        let wallet = Wallet::connect(&format!("btp+ws://{interledger}")).await?;
        client.extend(&hash, 10, &wallet, 1_000_000).await
    }
}

/// As `Orders` does, but for the order itself.
async fn sell(State(counter): State<Arc<Counter>>, headers: HeaderMap) -> impl IntoResponse {
    let till = Arc::clone(&counter.till);
    let id = OrderId::of_token(headers["pay-token"].as_bytes());
    let Some(payment) = till.payment(&id) else {
        till.expect(id, PRICE);
        let pay = format!("{} {PRICE}", till.challenge(&id));
        return (StatusCode::PAYMENT_REQUIRED, [("pay", pay)], String::new());
    };
    payment.collect(PRICE, PATIENCE).await.unwrap();
    let (status, body) = match counter.outcome {
        Outcome::Success => (
            StatusCode::OK,
            serde_json::json!({
                "url": "http://pod.test/",
                "manifestHash": HASH,
                "expiry": "2030-01-01T00:00:00.000Z",
            }),
        ),
        Outcome::Failure => {
            payment.shut().await;
            payment.refund(PRICE, PATIENCE).await;
            (
                StatusCode::BAD_GATEWAY,
                serde_json::json!({
                    "statusCode": 502,
                    "error": "Bad Gateway",
                    "message": "no pod today",
                }),
            )
        }
    };
    let closing = tokio::spawn(async move {
        payment.close().await;
        till.forget(&id);
    });
    counter.closing.lock().unwrap().push(closing);
    (status, [("pay", String::new())], body.to_string())
}

impl Counter {
    /// Waits until no order has anything more to say.
    async fn quiet(&self) {
        let closing = std::mem::take(&mut *self.closing.lock().unwrap());
        for closing in closing {
            timeout(PATIENCE, closing).await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paid_request_of_our_client_takes_four_prepares_in_all() {
    let (shop, counter) = Shop::open(Outcome::Success).await;
    let client = HostClient::new(&shop.api).unwrap();
    let mut times = Vec::new();
    for round in 1..=20 {
        let tap = Tap::start(shop.interledger).unwrap();
        let begin = Instant::now();
        let answer = timeout(PATIENCE, shop.buy(&client, tap.address()))
            .await
            .unwrap()
            .unwrap();
        times.push(begin.elapsed());
        counter.quiet().await;
        assert_eq!((answer.receipt.paid, answer.receipt.refunded), (PRICE, 0));
        let paid: u64 = shop
            .ledger
            .0
            .lock()
            .unwrap()
            .iter()
            .map(|it| it.amount)
            .sum();
        assert_eq!(paid, round * PRICE);
        // Who we are, the stream, the money, and the end.
        let prepares = tap.prepares();
        let money = format!("client amount {PRICE} ");
        let expected = [
            "client amount 0 ",
            "client amount 0 ",
            &money,
            "server amount 0 ",
        ];
        assert!(
            prepares.len() == 4
                && prepares
                    .iter()
                    .zip(expected)
                    .all(|(it, by)| it.starts_with(by)),
            "round {round}: {prepares:?}"
        );
    }
    times.sort();
    eprintln!("a paid request takes {:?}", times[times.len() / 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_fails_is_refunded_over_the_same_connection() {
    let (shop, counter) = Shop::open(Outcome::Failure).await;
    let client = HostClient::new(&shop.api).unwrap();
    let tap = Tap::start(shop.interledger).unwrap();
    let refused = timeout(PATIENCE, shop.buy(&client, tap.address()))
        .await
        .unwrap();
    let Err(ClientError::Refused { paid, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((paid.paid, paid.refunded), (PRICE, PRICE));
    counter.quiet().await;
    assert_eq!(shop.ledger.0.lock().unwrap().len(), 2);
    let prepares = tap.prepares();
    assert!(prepares.len() <= 6, "{prepares:?}");
}

/// A payer that does only what the test says.
struct Payer {
    connection: StreamConnection,
    _client: BtpClient,
}

struct Sender(BtpClient);

#[async_trait]
impl PacketSender for Sender {
    async fn send(&self, prepare: Prepare) -> Reply {
        let reply = self.0.send(prepare).await;
        reply.unwrap_or_else(|_| Err(Reject::new(ErrorCode::PeerUnreachable, None, "")))
    }
}

#[derive(Default)]
struct Inbox(std::sync::OnceLock<StreamConnection>);

#[async_trait]
impl RequestHandler for Inbox {
    async fn handle(&self, prepare: Prepare) -> Reply {
        match self.0.get() {
            Some(connection) => connection.incoming(&prepare, || async { Ok(()) }).await,
            None => Err(Reject::new(ErrorCode::UnexpectedPayment, None, "")),
        }
    }
}

const STREAM: StreamId = StreamId(1);

impl Payer {
    /// Opens a stream with a limit, for an order that is expected, and sees the ready byte.
    async fn begin(shop: &Shop, id: OrderId, limit: u64) -> Self {
        shop.till.expect(id, PRICE);
        let challenge = shop.till.challenge(&id);
        let words: Vec<_> = challenge.split(' ').collect();
        let secret = SharedSecret(STANDARD.decode(words[2]).unwrap().try_into().unwrap());
        let url = format!("btp+ws://:secret@{}", shop.interledger);
        let (inbox, clock) = (Arc::new(Inbox::default()), Arc::new(SystemClock));
        let client = BtpClient::connect(&url.parse().unwrap(), inbox.clone(), clock.clone())
            .await
            .unwrap();
        let own = client.configuration().await.unwrap();
        let config = Config {
            local_address: Some(own.client_address),
            ..Config::default()
        };
        let server = words[1].parse().unwrap();
        let entropy = Box::new(SystemEntropy);
        let mut machine = Connection::client(clock.now(), config, &secret, server, entropy);
        machine.open_stream().unwrap();
        machine.set_send_max(STREAM, limit).unwrap();
        let connection = StreamConnection::spawn(machine, Arc::new(Sender(client.clone())), clock);
        inbox.0.set(connection.clone()).unwrap();
        let payer = Self {
            connection,
            _client: client,
        };
        payer.sees(|_, seen| seen.data.contains_key(&STREAM)).await;
        payer
    }

    async fn sees(&self, what: impl Fn(&mut Connection, &mut Observed) -> bool) {
        let seen = self
            .connection
            .until(|machine, seen| what(machine, seen).then_some(()));
        timeout(PATIENCE, seen).await.unwrap();
    }

    fn held(&self) -> u64 {
        self.connection
            .with(|machine, _| machine.stream_held(STREAM).unwrap_or_default())
    }
}

#[tokio::test]
async fn money_waits_until_the_request_comes_again() {
    let (shop, _) = Shop::open(Outcome::Success).await;
    let id = OrderId::of_token(b"waits");
    let payer = Payer::begin(&shop, id, PRICE + 500).await;
    payer
        .sees(|machine, _| machine.stream_held(STREAM) == Some(PRICE))
        .await;
    sleep(A_WHILE).await;
    assert_eq!((payer.held(), shop.ledger.held(id)), (PRICE, 0));

    let payment = shop.till.payment(&id).unwrap();
    payment.collect(PRICE, PATIENCE).await.unwrap();
    payer
        .sees(|machine, _| machine.stream_sent(STREAM) == Some(PRICE))
        .await;
    assert_eq!(shop.ledger.held(id), i128::from(PRICE));
    payment.close().await;
    payer.sees(|_, seen| seen.ended.contains_key(&STREAM)).await;
    payer.sees(|_, seen| seen.closed.is_some()).await;
}

#[tokio::test]
async fn money_that_waits_for_an_order_that_is_forgotten_is_not_taken() {
    let (shop, _) = Shop::open(Outcome::Success).await;
    let id = OrderId::of_token(b"forgotten");
    let payer = Payer::begin(&shop, id, PRICE).await;
    payer
        .sees(|machine, _| machine.stream_held(STREAM) == Some(PRICE))
        .await;
    shop.till.forget(&id);
    payer
        .sees(|machine, _| machine.stream_held(STREAM) == Some(0))
        .await;
    assert!(shop.till.payment(&id).is_none());
    assert_eq!(shop.ledger.held(id), 0);
    // The same order can be expected anew, and the old connection is no part of it.
    shop.till.expect(id, PRICE);
    assert!(shop.till.payment(&id).is_none());
}

#[tokio::test]
async fn a_payer_that_goes_gets_back_the_money_that_waited() {
    let (shop, _) = Shop::open(Outcome::Success).await;
    let id = OrderId::of_token(b"goes");
    let payer = Payer::begin(&shop, id, PRICE).await;
    payer
        .sees(|machine, _| machine.stream_held(STREAM) == Some(PRICE))
        .await;
    let closing = payer.connection.close(StreamErrorCode::NoError, "");
    timeout(PATIENCE, closing).await.unwrap();
    let payment = shop.till.payment(&id).unwrap();
    let collected = payment.collect(PRICE, PATIENCE).await;
    assert_eq!(collected, Err(Shortfall::Interrupted { received: 0 }));
    assert_eq!(shop.ledger.held(id), 0);
}

#[tokio::test]
async fn a_payer_that_would_pay_less_is_asked_for_nothing() {
    let (shop, _) = Shop::open(Outcome::Success).await;
    let id = OrderId::of_token(b"less");
    let payer = Payer::begin(&shop, id, PRICE - 1).await;
    sleep(A_WHILE).await;
    assert_eq!((payer.held(), shop.ledger.held(id)), (0, 0));
    let payment = shop.till.payment(&id).unwrap();
    let collected = payment.collect(PRICE, PATIENCE).await;
    let (received, offered) = (0, PRICE - 1);
    assert_eq!(collected, Err(Shortfall::TooSmall { received, offered }));
    assert_eq!(shop.ledger.held(id), 0);
}

#[tokio::test]
async fn money_that_comes_when_all_is_sent_back_is_not_taken() {
    let (shop, _) = Shop::open(Outcome::Success).await;
    let id = OrderId::of_token(b"late");
    let payer = Payer::begin(&shop, id, PRICE).await;
    payer
        .sees(|machine, _| machine.stream_held(STREAM) == Some(PRICE))
        .await;
    let payment = shop.till.payment(&id).unwrap();
    payment.shut().await;
    // It is sent again and again, and refused as often.
    sleep(A_WHILE).await;
    payer
        .connection
        .with(|machine, _| assert_eq!(machine.total_sent(), 0));
    assert_eq!(shop.ledger.held(id), 0);
}

/// What `ilp-fetch` says of each of three purchases with a limit.
async fn ilp_fetch(shop: &Shop, limit: u64) -> Vec<serde_json::Value> {
    const STREAM: (&str, &str) = ("ilp-protocol-stream", "2.7.2-alpha.3");
    const PACKAGES: Packages<'_> = Packages {
        packages: &[STREAM, ("ilp-plugin", "3.5.4"), ("ilp-fetch", "1.4.0")],
        overrides: &[STREAM],
    };
    // As `CARGO_TARGET_TMPDIR`, which only tests of another kind have.
    let program = std::env::current_exe().unwrap();
    let cache = program.ancestors().nth(3).unwrap().join("tmp");
    let (api, interledger) = (shop.api.clone(), shop.interledger);
    let buying = tokio::task::spawn_blocking(move || {
        let modules = PACKAGES.install(&cache).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/buyer.js");
        let output = std::process::Command::new("node")
            .arg(script)
            .args([&format!("{api}/pods"), &limit.to_string(), "3"])
            .env("NODE_PATH", modules)
            .env_remove("ILP_PLUGIN")
            .env_remove("ILP_CREDENTIALS")
            .env("ILP_BTP_SERVER", format!("btp+ws://{interledger}"))
            .output()
            .expect("node cannot be started; install the Debian package `nodejs`");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{errors}");
        let lines = String::from_utf8(output.stdout).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect::<Vec<_>>()
    });
    buying.await.unwrap()
}

/// It waits for the end of its stream, and if it is not told of it, for its idle time-out of a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ilp_fetch_pays_the_price_and_does_not_wait_for_its_stream() {
    let (shop, counter) = Shop::open(Outcome::Success).await;
    for limit in [PRICE, PRICE + 1, 1_000_000] {
        for answer in ilp_fetch(&shop, limit).await {
            assert_eq!(answer["status"], 200, "{answer}");
            assert_eq!(answer["paid"], PRICE.to_string(), "{answer}");
            assert!(answer["millis"].as_u64().unwrap() < 30_000, "{answer}");
        }
        counter.quiet().await;
    }
    let paid: u64 = shop
        .ledger
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|it| it.amount)
        .sum();
    assert_eq!(paid, 9 * PRICE);
}
