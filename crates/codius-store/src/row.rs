//! Leases and orders as rows.

use codius_ledger::{
    BootId, Frost, Lease, LeaseParts, LeaseState, Millis, Order, OrderKind, OrderState,
    RequestDigest, Seconds, Segment, StoredResponse,
};
use rusqlite::{Connection, Row, params};

use crate::{LeaseRecord, StoreError};

/// SQLite's integers have a sign.
pub(crate) fn signed(what: &str, number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::refused(format!("{what} {number} is too large")))
}

pub(crate) fn unsigned(what: &str, number: i64) -> Result<u64, StoreError> {
    u64::try_from(number).map_err(|_| StoreError::wrong(format!("{what} {number} is negative")))
}

/// Reads text of the database as what it should be.
pub(crate) fn parsed<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, StoreError> {
    text.parse()
        .map_err(|_| StoreError::wrong(format!("{what} {text:?}")))
}

pub(crate) const LEASE_COLUMNS: &str = "leases.hash, leases.created_at_unix_ms, leases.rate, \
     leases.state, leases.end_reason, leases.segment_boot, leases.segment_counted_to_ms, \
     leases.run_ms, leases.charged, leases.granted_ms, leases.frozen_ms, leases.frozen_boot, \
     leases.frozen_counted_to_ms";

/// How many they are.
pub(crate) const LEASE_COLUMN_COUNT: usize = 13;

/// Of the columns [`LEASE_COLUMNS`], which are the first of the row.
pub(crate) fn lease_of(row: &Row<'_>) -> Result<Lease, StoreError> {
    let state: String = row.get(3)?;
    let state = match state.as_str() {
        "starting" => LeaseState::Starting,
        "paused" => match row.get::<_, Option<i64>>(10)? {
            None => LeaseState::Paused,
            Some(frozen_ms) => LeaseState::Frozen(Frost {
                frozen_ms: unsigned("frozen time", frozen_ms)?,
                counted: Segment {
                    boot: parsed::<BootId>("boot id", &row.get::<_, String>(11)?)?,
                    counted_to: Millis(unsigned("clock reading", row.get(12)?)?),
                },
            }),
        },
        "running" => LeaseState::Running(Segment {
            boot: parsed::<BootId>("boot id", &row.get::<_, String>(5)?)?,
            counted_to: Millis(unsigned("segment", row.get(6)?)?),
        }),
        "ended" => LeaseState::Ended {
            reason: parsed("end reason", &row.get::<_, String>(4)?)?,
        },
        other => return Err(StoreError::wrong(format!("lease state {other:?}"))),
    };
    let parts = LeaseParts {
        hash: parsed("lease hash", &row.get::<_, String>(0)?)?,
        created_at_unix_ms: unsigned("creation", row.get(1)?)?,
        rate: parsed("rate", &row.get::<_, String>(2)?)?,
        state,
        run_ms: unsigned("run time", row.get(7)?)?,
        charged: unsigned("charged amount", row.get(8)?)?,
        granted_ms: unsigned("granted time", row.get(9)?)?,
    };
    Lease::from_parts(parts)
        .map_err(|error| StoreError::wrong(format!("lease {}: {error}", parts.hash)))
}

pub(crate) fn write_lease(connection: &Connection, record: &LeaseRecord) -> Result<(), StoreError> {
    let parts = record.lease.parts();
    let size = record.origin.size;
    let (state, segment, frost, reason) = match parts.state {
        LeaseState::Starting => ("starting", None, None, None),
        LeaseState::Running(segment) => ("running", Some(segment), None, None),
        LeaseState::Paused => ("paused", None, None, None),
        LeaseState::Frozen(frost) => ("paused", None, Some(frost), None),
        LeaseState::Ended { reason } => ("ended", None, None, Some(reason)),
    };
    let reading = |segment: Segment| signed("clock reading", segment.counted_to.0);
    let counted_to = segment.map(reading).transpose()?;
    let frozen_ms = frost
        .map(|frost| signed("frozen time", frost.frozen_ms))
        .transpose()?;
    let frozen_counted_to = frost.map(|frost| reading(frost.counted)).transpose()?;
    let id: Option<i64> = connection
        .prepare_cached(
            "INSERT INTO leases (hash, created_at_unix_ms, rate, state, end_reason, segment_boot,
                                 segment_counted_to_ms, run_ms, charged, granted_ms, owner,
                                 carried, frozen_ms, frozen_boot, frozen_counted_to_ms, refund,
                                 machine, vcpus, memory_mib, disk_mib)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
                     ?18, ?19, ?20)
             ON CONFLICT (hash, created_at_unix_ms) DO UPDATE
             SET state = ?4, end_reason = ?5, segment_boot = ?6, segment_counted_to_ms = ?7,
                 run_ms = ?8, charged = ?9, granted_ms = ?10, frozen_ms = ?13, frozen_boot = ?14,
                 frozen_counted_to_ms = ?15
             WHERE leases.state <> 'ended' AND leases.rate = ?3
             RETURNING id",
        )?
        .query_map(
            params![
                parts.hash.to_string(),
                signed("creation", parts.created_at_unix_ms)?,
                parts.rate.to_string(),
                state,
                reason.map(|reason| reason.as_str()),
                segment.map(|segment| segment.boot.to_string()),
                counted_to,
                signed("run time", parts.run_ms)?,
                signed("charged amount", parts.charged)?,
                signed("granted time", parts.granted_ms)?,
                record.origin.owner,
                signed("carried amount", record.origin.carried)?,
                frozen_ms,
                frost.map(|frost| frost.counted.boot.to_string()),
                frozen_counted_to,
                record.origin.refund.map(|refund| refund.to_string()),
                size.name.as_str(),
                size.machine.vcpus,
                size.machine.memory_mib,
                size.machine.scratch_mib,
            ],
            |row| row.get(0),
        )?
        .next()
        .transpose()?;
    let Some(id) = id else {
        return Err(StoreError::refused(format!(
            "the lease of {} has ended",
            parts.hash
        )));
    };
    if record.lease.is_ended() {
        connection
            .prepare_cached("DELETE FROM uploads WHERE lease = ?1")?
            .execute([id])?;
        return Ok(());
    }
    let Some(upload) = &record.upload else {
        let known = connection
            .prepare_cached("SELECT 1 FROM uploads WHERE lease = ?1")?
            .exists([id])?;
        return if known {
            Ok(())
        } else {
            Err(StoreError::refused(format!(
                "a new lease of {} without its upload",
                parts.hash
            )))
        };
    };
    connection
        .prepare_cached(
            "INSERT INTO uploads (lease, upload, images) VALUES (?1, ?2, ?3)
             ON CONFLICT (lease) DO UPDATE SET upload = ?2, images = ?3",
        )?
        .execute(params![id, upload.upload_json, upload.images_json])?;
    Ok(())
}

pub(crate) const ORDER_COLUMNS: &str = "id, request, hash, kind, duration_secs, price, state, \
     response_status, response_body, payer, created_at_unix_ms";

/// Of the columns [`ORDER_COLUMNS`].
pub(crate) fn order_of(row: &Row<'_>) -> Result<Order, StoreError> {
    let response = || -> Result<StoredResponse, StoreError> {
        let status: i64 = row.get(7)?;
        let status = u16::try_from(status)
            .map_err(|_| StoreError::wrong(format!("response status {status}")))?;
        Ok(StoredResponse {
            status,
            body: row.get(8)?,
        })
    };
    let state: String = row.get(6)?;
    let state = match state.as_str() {
        "open" => OrderState::Open,
        "done" => OrderState::Done {
            response: response()?,
        },
        "failed" => OrderState::Failed {
            response: response()?,
        },
        other => return Err(StoreError::wrong(format!("order state {other:?}"))),
    };
    let kind: String = row.get(3)?;
    let kind = match kind.as_str() {
        "upload" => OrderKind::Upload,
        "extend" => OrderKind::Extend,
        other => return Err(StoreError::wrong(format!("order kind {other:?}"))),
    };
    Ok(Order {
        id: parsed("order id", &row.get::<_, String>(0)?)?,
        request: RequestDigest::from_bytes(row.get(1)?),
        hash: parsed("order hash", &row.get::<_, String>(2)?)?,
        kind,
        duration: Seconds(unsigned("duration", row.get(4)?)?),
        price: unsigned("price", row.get(5)?)?,
        state,
        payer: row.get(9)?,
        created_at_unix_ms: unsigned("creation", row.get(10)?)?,
    })
}

pub(crate) fn write_order(connection: &Connection, order: &Order) -> Result<(), StoreError> {
    let (state, response) = match &order.state {
        OrderState::Open => ("open", None),
        OrderState::Done { response } => ("done", Some(response)),
        OrderState::Failed { response } => ("failed", Some(response)),
    };
    let written = connection
        .prepare_cached(
            "INSERT INTO orders (id, request, hash, kind, duration_secs, price, state,
                                 response_status, response_body, payer, created_at_unix_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT (id) DO UPDATE
             SET state = ?7, response_status = ?8, response_body = ?9, payer = ?10
             WHERE orders.state = 'open' AND orders.request = ?2 AND orders.hash = ?3
               AND orders.kind = ?4 AND orders.duration_secs = ?5 AND orders.price = ?6",
        )?
        .execute(params![
            order.id.to_string(),
            order.request.as_bytes(),
            order.hash.to_string(),
            order.kind.as_str(),
            signed("duration", order.duration.0)?,
            signed("price", order.price)?,
            state,
            response.map(|response| response.status),
            response.map(|response| response.body.as_str()),
            order.payer,
            signed("creation", order.created_at_unix_ms)?,
        ])?;
    if written == 0 {
        return Err(StoreError::refused(format!(
            "order {} is answered or another",
            order.id
        )));
    }
    Ok(())
}
