//! Which way an address goes: longest prefix on segment boundaries below our own address.

use std::collections::HashMap;
use std::sync::Arc;

use ilp_packet::Address;

use crate::account::AccountId;

/// Most segments that a route may have below our address.
pub(crate) const MAX_ROUTE_SEGMENTS: usize = 4;

/// Who is responsible for addresses below a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A neighbour's account.
    Account(AccountId),
    /// A receiver inside the host, by its route.
    Receiver(Arc<str>),
}

/// What the table says about a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// It is exactly our own address.
    Ourselves,
    /// It is not below our address: the parent's affair.
    Elsewhere,
    /// It is below our address, but nobody has it.
    Nobody,
    /// This one has it.
    Found(Target),
}

/// Routes below our own address.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    routes: HashMap<Arc<str>, Target>,
}

impl RouteTable {
    /// Whether the route is in use.
    pub(crate) fn contains(&self, route: &str) -> bool {
        self.routes.contains_key(route)
    }

    /// Adds or replaces a route.
    pub(crate) fn insert(&mut self, route: Arc<str>, target: Target) {
        self.routes.insert(route, target);
    }

    /// Removes a route.
    pub(crate) fn remove(&mut self, route: &str) {
        self.routes.remove(route);
    }

    /// Finds who is responsible for `destination`.
    pub(crate) fn lookup(&self, own: &Address, destination: &Address) -> Lookup {
        let Some(rest) = destination.suffix_after(own) else {
            return Lookup::Elsewhere;
        };
        if rest.is_empty() {
            return Lookup::Ourselves;
        }
        let ends = rest
            .match_indices('.')
            .map(|(at, _)| at)
            .chain(std::iter::once(rest.len()))
            .take(MAX_ROUTE_SEGMENTS);
        let mut found = Lookup::Nobody;
        for end in ends {
            if let Some(target) = self.routes.get(&rest[..end]) {
                found = Lookup::Found(target.clone());
            }
        }
        found
    }
}

/// Whether the text may be a route: one to four address segments.
pub(crate) fn is_route(text: &str) -> bool {
    text.split('.').count() <= MAX_ROUTE_SEGMENTS && text.split('.').all(Address::is_segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[&str]) -> RouteTable {
        let mut table = RouteTable::default();
        for route in routes {
            table.insert((*route).into(), Target::Receiver((*route).into()));
        }
        table
    }

    fn found(route: &str) -> Lookup {
        Lookup::Found(Target::Receiver(route.into()))
    }

    #[test]
    fn the_longest_route_on_a_segment_boundary_wins() {
        let own: Address = "test.host".parse().unwrap();
        let table = table(&["a", "a.b", "ab"]);
        for (destination, expected) in [
            ("test.host.a", found("a")),
            ("test.host.a.c", found("a")),
            ("test.host.a.b", found("a.b")),
            ("test.host.a.b.c.d.e.f", found("a.b")),
            ("test.host.a.bb", found("a")),
            ("test.host.ab.b", found("ab")),
            ("test.host.abc", Lookup::Nobody),
            ("test.host", Lookup::Ourselves),
            ("test.hostess.a", Lookup::Elsewhere),
            ("test.other", Lookup::Elsewhere),
            ("g.host.a", Lookup::Elsewhere),
        ] {
            let address: Address = destination.parse().unwrap();
            assert_eq!(table.lookup(&own, &address), expected, "{destination}");
        }
    }

    #[test]
    fn routes_are_one_to_four_segments() {
        for good in ["a", "local.u-alice", "a.b.c.d"] {
            assert!(is_route(good), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a b", "a..b", "a.b.c.d.e"] {
            assert!(!is_route(bad), "{bad}");
        }
    }
}
