//! The least that can stand between two clients: it hands the frames of one to the other, unread.
//! What the load reaches here is the load's own limit.

use std::{
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result};
use codius_bench::{connection::Connection, frames};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;

/// Serves pair after pair until the process is ended by the end of its standard input.
pub(crate) fn run() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", json!({ "ports": [listener.local_addr()?.port()] }));
    thread::spawn(move || {
        loop {
            let joined = || -> Result<()> {
                let payer = enter(&listener, "payer")?;
                let payee = enter(&listener, "payee")?;
                join([payer, payee])
            };
            // Every pair ends with a goodbye, or with the failure of the load, which says so itself.
            if let Err(error) = joined() {
                eprintln!("relay: {error:#}");
            }
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn enter(listener: &TcpListener, name: &str) -> Result<Connection> {
    let (stream, _): (TcpStream, _) = listener.accept()?;
    let mut connection = Connection::accept(stream)?;
    let hello = connection.wait_message()?;
    connection.queue(&frames::welcome(&hello)?);
    let request = connection.wait_message()?;
    let address = format!("private.relay.{name}").parse()?;
    connection.queue(&frames::address_answer(&request, address)?);
    connection.flush()?;
    connection.set_nonblocking()?;
    Ok(connection)
}

fn join(mut pair: [Connection; 2]) -> Result<()> {
    loop {
        let mut ready = pair.each_ref().map(|connection| {
            let mut flags = PollFlags::IN;
            if connection.has_output() {
                flags |= PollFlags::OUT;
            }
            PollFd::new(connection.socket(), flags)
        });
        poll(&mut ready, None).context("poll")?;
        let ready = ready.map(|ready| ready.revents().intersects(PollFlags::IN | PollFlags::HUP));
        let [payer, payee] = &mut pair;
        pass(payer, payee, ready[0])?;
        pass(payee, payer, ready[1])?;
    }
}

fn pass(from: &mut Connection, to: &mut Connection, ready: bool) -> Result<()> {
    if ready {
        anyhow::ensure!(from.fill()?, "a client left");
        while let Some(message) = from.next_message()? {
            to.queue(message);
        }
    }
    to.flush()
}
