//! Each check finds what is wrong in a reading that is right but for one thing.

use super::*;
use crate::{
    books::{LeaseRow, OrderRow},
    machines::ProcessId,
};

const PREFIX: &str = "cdab12-";

/// A client has paid 1000 for a lease of `h` that has run for 100 s at 5 a second, and got 100 of a
/// lease of `g` back, whose order is answered.
fn right() -> Books {
    let lease = |hash: &str, state: &str, reason: Option<&str>, run_ms, charged| LeaseRow {
        hash: hash.into(),
        state: state.into(),
        end_reason: reason.map(Into::into),
        frozen: false,
        rate: "5".into(),
        run_ms,
        charged,
    };
    let flows = [
        ((CLIENTS, "order:o"), 1_000),
        (("order:o", "lease:h"), 1_000),
        (("lease:h", "earned"), 500),
        ((CLIENTS, "lease:g"), 150),
        (("lease:g", "earned"), 50),
        (("lease:g", "owed:g"), 100),
        (("owed:g", CLIENTS), 100),
    ];
    let mut books = Books {
        leases: vec![
            lease("h", "running", None, 100_000, 500),
            lease("g", "ended", Some("stopped"), 10_000, 50),
        ],
        orders: vec![OrderRow {
            id: "o".into(),
            hash: "h".into(),
            state: "done".into(),
        }],
        ..Books::default()
    };
    for ((from, to), amount) in flows {
        books.flows.insert((from.into(), to.into()), amount);
        *books.balances.entry(from.into()).or_default() -= amount;
        *books.balances.entry(to.into()).or_default() += amount;
    }
    books.sums = books.balances.clone();
    books
}

fn tally() -> Tally {
    Tally {
        paid: 1_150,
        received: 100,
        ..Tally::default()
    }
}

fn machine(pid: i32, state: char) -> Machine {
    Machine {
        process: ProcessId {
            pid,
            start_ticks: 5,
        },
        slot: 3,
        state,
    }
}

fn note(hash: &str, pid: i32) -> PodNote {
    PodNote {
        hash: hash.into(),
        slot: 3,
        process: Some(machine(pid, 'S').process),
    }
}

fn there() -> Things {
    Things {
        namespaces: vec!["cdab12-3".into()],
        interfaces: vec!["cdab12-3".into()],
        tables: 1,
        pod_dirs: vec!["h".into()],
        record_files: vec!["h.json".into()],
        strange: Vec::new(),
    }
}

/// The one line that is found, which says this.
fn finds(wrong: &[String], says: &str) {
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].contains(says), "{wrong:?} does not say {says:?}");
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let books = right();
    let none: [String; 0] = [];
    assert_eq!(ledger(&books), none);
    assert_eq!(leases(&books), none);
    assert_eq!(lives(&books, |_| 100_000), none);
    assert_eq!(clients(&books, &tally()), none);
    assert_eq!(settled(&books), none);
    let machine = machine(7, 'S');
    let notes = [note("h", 7)];
    assert_eq!(machines(&books, &[machine], &notes), none);
    assert_eq!(things(&books, &there(), &notes, PREFIX), none);
}

#[test]
fn a_ledger_that_does_not_add_up_is_found() {
    let mut books = right();
    books.balances.insert("owed:x".into(), 1);
    books.sums.insert("owed:x".into(), 1);
    finds(&ledger(&books), "all balances together are 1");

    let mut books = right();
    books.unbalanced.push((9, -2));
    finds(&ledger(&books), "transaction 9 sums to -2");

    let mut books = right();
    books.sums.insert("earned".into(), 549);
    finds(&ledger(&books), "earned has 550, its postings 549");

    let mut books = right();
    for accounts in [&mut books.balances, &mut books.sums] {
        accounts.insert("owed:x".into(), -1);
        accounts.insert("owed:y".into(), 1);
    }
    finds(&ledger(&books), "owed:x has -1, below 0");
}

#[test]
fn a_lease_that_was_charged_wrongly_is_found() {
    let mut books = right();
    books.leases[0].run_ms = 99_700;
    finds(&leases(&books), "charged 500 for 99700 ms");

    let mut books = right();
    books.leases[1].run_ms = 10_300;
    finds(&leases(&books), "which cost 51, and something was returned");

    let mut books = right();
    books.leases[0].charged = 499;
    finds(
        &leases(&books),
        "charged 499 by its record, 500 by the ledger",
    );

    let mut books = right();
    books.balances.insert("lease:h".into(), 499);
    finds(&leases(&books), "is not charged 500 + balance 499");

    let mut books = right();
    books.leases[0].state = "ended".into();
    finds(&leases(&books), "is over and still has 500");
}

#[test]
fn a_lease_that_ran_longer_than_its_machine_is_found() {
    let lived = |hash: &str| if hash == "h" { 99_000 } else { 10_000 };
    finds(&lives(&right(), lived), "has run for 100000 ms");
}

#[test]
fn money_that_clients_know_otherwise_is_found() {
    let books = right();
    let cases = [
        (
            Tally {
                paid: 1_151,
                ..tally()
            },
            "paid 1151",
        ),
        (
            Tally {
                paid: 1_149,
                ..tally()
            },
            "the books say 1150",
        ),
        (
            Tally {
                received: 101,
                ..tally()
            },
            "got back 101",
        ),
        (
            Tally {
                received: 99,
                ..tally()
            },
            "the books say 100",
        ),
    ];
    for (tally, says) in cases {
        finds(&clients(&books, &tally), says);
    }
    // What nobody can know may be either way.
    let unknown = Tally {
        paid: 1_140,
        perhaps_paid: 10,
        received: 90,
        perhaps_received: 20,
    };
    assert_eq!(clients(&books, &unknown), [""; 0]);
}

#[test]
fn a_promise_that_was_forgotten_is_found() {
    let mut books = right();
    let promises = [
        Told::Placed { hash: "h".into() },
        Told::Stopped {
            hash: "g".into(),
            used: 50,
        },
    ];
    assert_eq!(told(&books, &promises), [""; 0]);
    books.leases[1].charged = 51;
    finds(&told(&books, &promises), "Stopped");
    books.leases.remove(0);
    assert_eq!(told(&books, &promises).len(), 2);
}

#[test]
fn orders_and_starts_that_nobody_waits_for_are_found() {
    let mut books = right();
    books.orders[0].state = "open".into();
    finds(&settled(&books), "order o is open");

    let mut books = right();
    books.balances.insert("order:o".into(), 3);
    finds(&settled(&books), "is done and holds 3");

    let mut books = right();
    books.leases[0].state = "starting".into();
    finds(&settled(&books), "is starting");
}

#[test]
fn machines_and_leases_that_do_not_belong_together_are_found() {
    let books = right();
    let notes = [note("h", 7)];
    finds(&machines(&books, &[], &notes), "has no machine");

    let both = [machine(7, 'S'), machine(8, 'S')];
    finds(
        &machines(&books, &both, &notes),
        "machine 8 (slot 3) has no record",
    );

    let twice = [note("h", 7), note("h", 8)];
    finds(&machines(&books, &both, &twice), "2 machines run h");

    let of_ended = [note("h", 7), note("g", 8)];
    finds(&machines(&books, &both, &of_ended), "which has no lease");

    finds(
        &machines(&books, &[machine(7, 'T')], &notes),
        "is stopped, and its lease runs",
    );
    let mut frozen = right();
    frozen.leases[0].state = "paused".into();
    frozen.leases[0].frozen = true;
    assert_eq!(machines(&frozen, &[machine(7, 'T')], &notes), [""; 0]);
    finds(
        &machines(&frozen, &[machine(7, 'S')], &notes),
        "runs, and its lease is frozen",
    );
}

#[test]
fn things_of_no_pod_are_found() {
    let (books, notes) = (right(), [note("h", 7)]);
    let check = |things: &Things| super::things(&books, things, &notes, PREFIX);
    let mut found = there();
    found.namespaces.push("cdab12-4".into());
    finds(&check(&found), "namespace cdab12-4 is of no pod");
    let mut found = there();
    found.interfaces.clear();
    finds(&check(&found), "interface cdab12-3 is missing");
    let mut found = there();
    found.tables = 2;
    finds(&check(&found), "2 firewall tables");
    let mut found = there();
    found.pod_dirs.push("g".into());
    finds(&check(&found), "directory of pod g");
    for name in ["g.json", "h.new"] {
        let mut found = there();
        found.record_files.push(name.into());
        finds(&check(&found), name);
    }
    let mut found = there();
    found.strange.push("pods/x".into());
    finds(&check(&found), "pods/x");
    let mut ended = right();
    ended.leases[0].state = "ended".into();
    finds(
        &things(&ended, &there(), &notes, PREFIX),
        "noted and has no lease",
    );
}

#[test]
fn images_without_a_record_and_records_without_an_image_are_found() {
    let files = |images: &[&str], temporary: &[&str]| ImageFiles {
        images: images.iter().map(ToString::to_string).collect(),
        temporary: temporary.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(images(&files(&["a.json", "a.squashfs"], &[])), [""; 0]);
    finds(&images(&files(&["a.json"], &[])), "a.json is there without");
    finds(
        &images(&files(&["a.squashfs"], &[])),
        "a.squashfs is there without",
    );
    finds(&images(&files(&["x"], &[])), "x is nothing");
    finds(&images(&files(&[], &["y"])), "y is half made");
}

#[test]
fn what_is_left_at_the_end_is_found() {
    let mut books = right();
    let found = nothing(&books, &[machine(7, 'S')], &there());
    // The lease, its money, its machine, the table, two of the network, two files.
    assert_eq!(found.len(), 8, "{found:?}");
    books.leases.remove(0);
    books.balances.insert("lease:h".into(), 0);
    assert_eq!(nothing(&books, &[], &Things::default()), [""; 0]);
}
