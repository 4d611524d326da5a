//! Pods that their driver could not remove. Each is removed again and again, after waits that grow, until it is
//! gone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use codius_manifest::ManifestHash;

use crate::{Driver, DriverError};

/// How long after a removal that failed the next is tried; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest of these waits.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Pods that were to be removed and could not be. Whoever removes one holds its lock.
#[derive(Debug, Default)]
pub(super) struct Leftovers(Mutex<HashMap<ManifestHash, Arc<tokio::sync::Mutex<()>>>>);

impl Leftovers {
    fn table(&self) -> MutexGuard<'_, HashMap<ManifestHash, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a pod that could not be removed, and begins to try again.
    pub(super) fn add(
        self: &Arc<Self>,
        hash: ManifestHash,
        error: &DriverError,
        driver: &Arc<dyn Driver>,
    ) {
        not_removed(&hash, error, FIRST_RETRY);
        let is_new = {
            let mut table = self.table();
            let is_new = !table.contains_key(&hash);
            table.entry(hash).or_default();
            is_new
        };
        if is_new {
            let leftovers = Arc::downgrade(self);
            tokio::spawn(remove_at_last(leftovers, Arc::clone(driver), hash));
        }
    }

    /// Removes what is left of a pod, if there is something, while nobody else does.
    pub(super) async fn remove(
        &self,
        driver: &dyn Driver,
        hash: &ManifestHash,
    ) -> Result<(), DriverError> {
        let Some(lock) = self.table().get(hash).cloned() else {
            return Ok(());
        };
        let _alone = lock.lock().await;
        // Somebody else has removed it meanwhile.
        if !self.table().contains_key(hash) {
            return Ok(());
        }
        driver.stop(hash, Duration::ZERO).await?;
        self.table().remove(hash);
        Ok(())
    }
}

/// Removes a leftover until it is gone, or nobody supervises any more: then the next start of the daemon
/// does, which looks for what no lease needs.
async fn remove_at_last(leftovers: Weak<Leftovers>, driver: Arc<dyn Driver>, hash: ManifestHash) {
    let mut wait = FIRST_RETRY;
    loop {
        tokio::time::sleep(wait).await;
        let Some(leftovers) = leftovers.upgrade() else {
            return;
        };
        match leftovers.remove(&*driver, &hash).await {
            Ok(()) => {
                tracing::info!(pod = %hash, "removed at last");
                return;
            }
            Err(error) => {
                wait = (2 * wait).min(LONGEST_RETRY);
                not_removed(&hash, &error, wait);
            }
        }
    }
}

fn not_removed(hash: &ManifestHash, error: &DriverError, wait: Duration) {
    tracing::error!(
        pod = %hash,
        error = error as &dyn std::error::Error,
        "pod could not be removed; it is not charged, and tried again in {} s",
        wait.as_secs()
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;
    use codius_manifest::{PodSpec, Upload};

    use super::*;
    use crate::{
        Duplex, ExecError, ExecSession, ExecStart, ImageConfig, ImageError, Images,
        InterledgerPort, Isolation, Machine, Pod, PodEvents, PodNotice, PodStart, PodUsage,
        PreparedImage, PullProgress, ResolvedImage, RunningPod, SETTLE, StartError, StartPhase,
        StartProgress, Supervisor,
    };

    /// Removes a pod only after it has refused so many times.
    #[derive(Default)]
    struct Stubborn {
        refusals: Mutex<u32>,
        asked: Mutex<u32>,
        /// Who hears of its pods, for as long as they run.
        hearing: Mutex<Vec<Arc<dyn PodEvents>>>,
    }

    impl Stubborn {
        fn asked(&self) -> u32 {
            *self.asked.lock().unwrap()
        }

        fn refuses(&self, times: u32) {
            *self.refusals.lock().unwrap() = times;
        }
    }

    #[async_trait]
    impl Driver for Stubborn {
        fn overhead_mib(&self, _: Machine) -> u64 {
            0
        }

        async fn usage(
            &self,
            _: &[ManifestHash],
        ) -> Result<BTreeMap<ManifestHash, PodUsage>, DriverError> {
            Ok(BTreeMap::new())
        }

        fn isolation(&self) -> Isolation {
            Isolation::Tcg
        }

        async fn start(
            &self,
            _: PodStart,
            events: Arc<dyn PodEvents>,
        ) -> Result<RunningPod, DriverError> {
            self.hearing.lock().unwrap().push(events);
            Ok(RunningPod {
                address: None,
                frozen: false,
            })
        }

        async fn attach(
            &self,
            _: &ManifestHash,
            _: Arc<dyn PodEvents>,
        ) -> Result<RunningPod, DriverError> {
            Err(DriverError::NotRunning)
        }

        async fn freeze(&self, _: &ManifestHash) -> Result<(), DriverError> {
            Ok(())
        }

        async fn thaw(&self, _: &ManifestHash) -> Result<(), DriverError> {
            Ok(())
        }

        fn tell(&self, _: &ManifestHash, _: PodNotice) {}

        async fn exec(&self, _: &ManifestHash, _: ExecStart) -> Result<ExecSession, ExecError> {
            Err(ExecError::NotOffered)
        }

        async fn stop(&self, _: &ManifestHash, _: Duration) -> Result<(), DriverError> {
            *self.asked.lock().unwrap() += 1;
            let mut refusals = self.refusals.lock().unwrap();
            if *refusals == 0 {
                return Ok(());
            }
            *refusals -= 1;
            Err(DriverError::Host {
                doing: "remove it".to_owned(),
                source: std::io::Error::other("busy"),
            })
        }

        async fn list(&self) -> Result<Vec<ManifestHash>, DriverError> {
            Ok(Vec::new())
        }
    }

    struct Ready;

    #[async_trait]
    impl Images for Ready {
        async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
            Ok(resolved(reference))
        }

        async fn prepare(
            &self,
            image: &ResolvedImage,
            _: Arc<dyn PullProgress>,
        ) -> Result<PreparedImage, ImageError> {
            Ok(PreparedImage {
                digest: image.digest.clone(),
                block_image: "/i".into(),
                config: ImageConfig {
                    cmd: vec!["run".to_owned()],
                    ..ImageConfig::default()
                },
            })
        }
    }

    fn resolved(reference: &str) -> ResolvedImage {
        ResolvedImage {
            reference: reference.to_owned(),
            digest: "sha256:0".to_owned(),
            compressed_bytes: 0,
            cached: true,
        }
    }

    struct Nobody;

    impl InterledgerPort for Nobody {
        fn connected(&self, _: &ManifestHash, _: Box<dyn Duplex>) {}
    }

    impl StartProgress for Nobody {
        fn phase(&self, _: StartPhase) {}
    }

    fn spec() -> PodSpec {
        let body =
            br#"{"manifest":{"name":"n","version":"1","containers":[{"id":"app","image":"i"}]}}"#;
        let upload = Upload::parse(body).unwrap();
        upload.pod_spec("http://host").unwrap()
    }

    fn supervisor(driver: &Arc<Stubborn>) -> Supervisor {
        Supervisor::new(
            Arc::clone(driver) as Arc<dyn Driver>,
            Arc::new(Ready),
            Arc::new(Nobody),
            SETTLE,
            Arc::new(|| 0),
        )
    }

    async fn start(supervisor: &Supervisor) -> Result<Pod, StartError> {
        let image = resolved("i");
        let nobody = Arc::new(Nobody);
        supervisor
            .start(&spec(), &[image], Machine::SMALL, nobody)
            .await
    }

    /// Far longer than every wait.
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_cannot_be_removed_is_tried_until_it_is_gone() {
        let driver = Arc::new(Stubborn::default());
        let supervisor = supervisor(&driver);
        // Given a pod that cannot be removed nine times; nobody waits for it.
        driver.refuses(9);
        supervisor.stop(&spec().hash, Duration::ZERO).await;
        assert_eq!(driver.asked(), 1);

        // The waits grow: 1, 2, 4, 8 and 16 s are over after 31 s.
        tokio::time::sleep(Duration::from_millis(31_500)).await;
        assert_eq!(driver.asked(), 6);
        // It is asked until it is gone, and then no more.
        tokio::time::sleep(LONG).await;
        assert_eq!(driver.asked(), 10);
        tokio::time::sleep(LONG).await;
        assert_eq!(driver.asked(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_pod_of_a_hash_is_not_taken_for_what_is_left_of_the_last() {
        let driver = Arc::new(Stubborn::default());
        let supervisor = supervisor(&driver);
        driver.refuses(u32::MAX);
        supervisor.stop(&spec().hash, Duration::ZERO).await;

        // While something is left there is no new pod,
        let refused = start(&supervisor).await.unwrap_err();
        assert!(refused.is_host_fault(), "{refused}");
        // and once there is one, nothing removes it.
        driver.refuses(0);
        start(&supervisor).await.unwrap();
        let asked = driver.asked();
        tokio::time::sleep(LONG).await;
        assert_eq!(driver.asked(), asked);
    }
}
