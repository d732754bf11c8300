//! # Many machines: how to run it
//!
//! A run has three parts: a NATS server with JetStream, one *parent* (your program, as you start it), and *nodes* (the same
//! program, with `POOL_NODE` in its environment). They may be started in any order.
//!
//! # On a laptop, in three terminals
//!
//! ```text
//! $ nats-server -js -a 127.0.0.1
//! $ POOL_NODE=nats://127.0.0.1:4222/nightly ./app
//! $ ./app
//! ```
//!
//! where the program has
//!
//! ```no_run
//! # use pool_core::{Error, Pool};
//! # fn main() -> Result<(), Error> {
//! let backend = pool_nats::connect("nats://127.0.0.1:4222")?.run("nightly");
//! let pool = Pool::builder().backend(backend).build()?;
//! # Ok(())
//! # }
//! ```
//!
//! All must be the same build: a node with other tasks is refused, and both sides say which task is missing.
//!
//! # By ssh
//!
//! Copy the program, and start it; a node waits for the run, and ends with it.
//!
//! ```text
//! for host in n1 n2 n3; do
//!     scp -q app $host:
//!     ssh $host 'POOL_NODE=nats://head:4222/nightly setsid ./app </dev/null >node.log 2>&1 &'
//! done
//! ./app
//! ```
//!
//! # With Slurm
//!
//! One node process on each host of the job, with all its CPUs; the parent is the script's last step.
//!
//! ```text
//! #!/bin/bash
//! #SBATCH --nodes=8 --exclusive
//! nats-server -js -sd "$TMPDIR/nats" &
//! export URL=nats://$(hostname):4222
//! POOL_NODE=$URL/job-$SLURM_JOB_ID srun --ntasks-per-node=1 ./app &
//! ./app "$URL" "job-$SLURM_JOB_ID"
//! ```
//!
//! # On Kubernetes
//!
//! A Job of nodes; they may be evicted and come again at any time. The grace period must be longer than the pool's `grace`.
//!
//! ```yaml
//! apiVersion: batch/v1
//! kind: Job
//! metadata: { name: nodes }
//! spec:
//!   parallelism: 20
//!   template:
//!     spec:
//!       restartPolicy: OnFailure
//!       terminationGracePeriodSeconds: 30
//!       containers:
//!         - name: node
//!           image: registry.example/app
//!           env:
//!             - { name: POOL_NODE, value: "nats://user:password@nats:4222/nightly" }
//!             - { name: POOL_NODE_PROCESSES, value: "4" }
//!           resources: { limits: { cpu: "4", memory: 8Gi } }
//! ```
//!
//! # With systemd
//!
//! A node that is always there, and waits for the next run of this name:
//!
//! ```text
//! [Service]
//! Environment=POOL_NODE=nats://head:4222/nightly
//! ExecStart=/usr/local/bin/app
//! Restart=always
//! ```
//!
//! # Who may do what
//!
//! Who may publish to the subjects of a run may run any task of the program. This configuration of a server lets a parent and its nodes do
//! what they must, and no more; nobody who has no certificate gets in at all. (It is what the tests of this crate use.)
//!
//! ```text
#![doc = include_str!("server.conf")]
//! ```
//!
//! A node learns who it is from the variables of the command `nats`:
//!
//! ```text
//! NATS_USER=node NATS_PASSWORD='change me too' \
//!     NATS_CA=ca.pem NATS_CERT=client.pem NATS_KEY=client-key.pem POOL_NODE=tls://head:4222/nightly ./app
//! ```
//!
//! and so does a parent that has no [`options`](crate::Nats::options). What the server denies to one of them is
//! [`Error::Broken`](pool_core::Error::Broken), or the last line of the node, with the subject.
//!
//! # When the server has little room
//!
//! Loads are in the memory of the server (on its disk, if it may use no memory), what is long in an object store on its disk.
//! [`max_bytes`](crate::Nats::max_bytes) bounds what inputs take there. A disk that is full is waited for as long as a
//! server that is away, with [`server_timeout`](crate::Nats::server_timeout).
//!
//! # What it costs
//!
//! Measured with server, parent and two nodes on one machine with two processors, so that all of them shared these:
//!
//! | | |
//! |---|---|
//! | `apply` of an empty task | 0.33 to 0.46 ms |
//! | `map` of empty tasks | 2.6 million a second |
//! | the same with `chunksize(1)` | 2.6 million a second |
//! | processors' time that is spent in tasks of 1 ms, of 10 ms | 88 to 92 %, 97 to 99 % |
//! | an argument of 64 MiB | 130 MiB/s |
//!
//! (`cargo bench -p benches -- --only machines` measures it, beside Ray and Dask.)
//!
//! Inputs travel in loads of about 5 ms of work. What is longer than 256 KiB goes through the object store of the run. What is
//! bound by [`partial`](pool_core::Call::partial), and each [`Shared`](pool_core::Shared), goes there once, from there
//! to each node once, and is in memory once on each.
//!
//! # What to watch
//!
//! - Each node writes a line to its standard error when it waits, joins, and ends, and why. The parent tells the same through
//!   `tracing`: `a node has joined`, `a node has left`, `a node was refused`.
//! - `nats stream info pool_nightly` shows what is published and not done (no more than three loads for each worker), and who
//!   pulls. `nats sub 'pool.nightly.>'` shows the talk. `nats object info pool_nightly` shows what is stored.
//! - After a run there is neither the stream nor the object store. What is left where a parent and all its nodes were killed together,
//!   where the parent's host lost its power, or where the server was away at the end, is deleted by the next run of this name.
