//! Which rules hold for which pod, and changing them while pods run.
//!
//! A pod's own rules are set before its first packet can pass, and again when this process takes it up:
//! then the policy may be another. The host's table names the interfaces of pods with a permit, so it
//! follows them. A slot is used again by another pod: its rules in the host's table are right before that
//! pod is connected, or it is not connected.
//!
//! Everything here blocks on `nft`.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
};

use codius_manifest::ManifestHash;
use codius_pod::{Count, Permit, Traffic};

use super::{
    Block, Common, counters,
    firewall::{self, Before},
    link, open_namespace,
};
use crate::{
    Instance,
    programs::{Programs, run},
};

/// The rules of all pods of one instance.
#[derive(Debug)]
pub(crate) struct EgressRules {
    common: Common,
    instance: Instance,
    programs: Programs,
    /// Written to only while the rules of running pods are changed; so no pod is connected by an old one.
    permits: RwLock<HashMap<ManifestHash, Permit>>,
    connected: Mutex<Connected>,
}

/// The pods that have rules now.
#[derive(Debug, Default)]
struct Connected {
    slots: HashMap<ManifestHash, u16>,
    /// Those with a permit, by slot, as they are wanted in the host's table.
    permitted: BTreeMap<u16, Permit>,
    /// As they are in the host's table; unknown after a failure.
    in_table: Option<BTreeMap<u16, Permit>>,
}

impl EgressRules {
    pub(crate) fn new(programs: &Programs, instance: &Instance, common: Common) -> Self {
        Self {
            common,
            instance: instance.clone(),
            programs: programs.clone(),
            permits: RwLock::default(),
            connected: Mutex::default(),
        }
    }

    /// Puts up the host's table, in place of an older one.
    pub(crate) fn set_up_host(&self) -> io::Result<()> {
        self.set_host(&mut self.lock(), Before::Unknown)
    }

    /// Connects a pod's namespace to the host, with its firewall up before the first packet can pass. Meant
    /// to run while the guest boots.
    pub(crate) fn connect(
        &self,
        namespace: &OwnedFd,
        name: &str,
        pod: &ManifestHash,
        slot: u16,
    ) -> io::Result<()> {
        self.renew(namespace, pod, slot)?;
        link(&self.programs, namespace, name, self.block(slot))
    }

    /// Sets the rules of a pod, in place of those it has.
    pub(crate) fn renew(
        &self,
        namespace: &OwnedFd,
        pod: &ManifestHash,
        slot: u16,
    ) -> io::Result<()> {
        let permits = self.permits.read().unwrap_or_else(PoisonError::into_inner);
        let permit = permits.get(pod).cloned().unwrap_or_default();
        {
            let mut connected = self.lock();
            connected.slots.insert(*pod, slot);
            connected.want(slot, &permit);
            self.bring_host_up_to_date(&mut connected)?;
        }
        self.set_pod(namespace, slot, &permit)
    }

    /// A pod is gone.
    pub(crate) fn forget(&self, pod: &ManifestHash) {
        let mut connected = self.lock();
        let Some(slot) = connected.slots.remove(pod) else {
            return;
        };
        connected.want(slot, &Permit::default());
        if let Err(error) = self.bring_host_up_to_date(&mut connected) {
            // Tried again before the slot is used again.
            tracing::warn!(%error, slot, "a permit stays in the host's firewall table");
        }
    }

    /// Gives a pod another permit from now on.
    pub(crate) fn permit(&self, pod: ManifestHash, permit: Permit) -> io::Result<()> {
        let mut permits = self.permits.write().unwrap_or_else(PoisonError::into_inner);
        if permit.is_empty() {
            permits.remove(&pod);
        } else {
            permits.insert(pod, permit.clone());
        }
        let mut connected = self.lock();
        let Some(&slot) = connected.slots.get(&pod) else {
            return Ok(());
        };
        connected.want(slot, &permit);
        // Both are tried: what is taken back has to end in at least one of them.
        let host = self.bring_host_up_to_date(&mut connected);
        let namespace = open_namespace(&self.instance.pod_name(slot))?;
        self.set_pod(&namespace, slot, &permit)?;
        host
    }

    /// What pods have sent and received; those that are not connected are left out.
    pub(crate) fn traffic(&self, pods: &[ManifestHash]) -> BTreeMap<ManifestHash, Traffic> {
        let mut all = BTreeMap::new();
        for pod in pods {
            let slot = |rules: &Self| rules.lock().slots.get(pod).copied();
            let Some(before) = slot(self) else { continue };
            let counters = open_namespace(&self.instance.pod_name(before))
                .and_then(|namespace| counters::in_namespace(&namespace));
            if slot(self) != Some(before) {
                // It has ended meanwhile, and another pod may have the slot by now.
                continue;
            }
            match counters {
                Ok(counters) => {
                    all.insert(*pod, counters::traffic(&counters));
                }
                // The others are told all the same.
                Err(error) => tracing::warn!(%pod, %error, "counters cannot be read"),
            }
        }
        all
    }

    /// What the host's table has refused, of all pods together.
    pub(crate) fn refused_by_host(&self) -> io::Result<Count> {
        let table = firewall::table_name(&self.instance);
        let counters = counters::of_host(&table)?;
        Ok(counters
            .get(firewall::HOST_REFUSED)
            .copied()
            .unwrap_or_default())
    }

    fn set_pod(&self, namespace: &OwnedFd, slot: u16, permit: &Permit) -> io::Result<()> {
        let rules = firewall::pod_rules(self.block(slot), &self.common, permit);
        run(&self.programs.nft, &["-f", "-"], &rules, Some(namespace))
    }

    fn bring_host_up_to_date(&self, connected: &mut Connected) -> io::Result<()> {
        if connected.in_table.as_ref() == Some(&connected.permitted) {
            return Ok(());
        }
        self.set_host(connected, Before::Ours)
    }

    fn set_host(&self, connected: &mut Connected, before: Before) -> io::Result<()> {
        connected.in_table = None;
        let permits: Vec<(u16, &Permit)> = connected
            .permitted
            .iter()
            .map(|(slot, permit)| (*slot, permit))
            .collect();
        let rules = firewall::host_rules(&self.instance, &self.common, &permits, before);
        run(&self.programs.nft, &["-f", "-"], &rules, None)?;
        connected.in_table = Some(connected.permitted.clone());
        Ok(())
    }

    fn block(&self, slot: u16) -> Block {
        self.common.pool.block(slot)
    }

    fn lock(&self) -> MutexGuard<'_, Connected> {
        // What is half changed after a panic is what is wanted, and unknown in the table.
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    fn want(&mut self, slot: u16, permit: &Permit) {
        if permit.is_empty() {
            self.permitted.remove(&slot);
        } else {
            self.permitted.insert(slot, permit.clone());
        }
    }
}
