//! Bytes travel as one block, so they cost their length and a few bytes more; long ones are not copied.

use pool_core::{Task, pool_task};

#[pool_task]
fn flip(bytes: Vec<u8>, mask: &[u8], more: &std::vec::Vec<u8>) -> Vec<u8> {
    bytes
        .iter()
        .zip(mask)
        .zip(more)
        .map(|((byte, mask), more)| byte ^ mask ^ more)
        .collect()
}

fn main() {
    let mut out = Vec::new();
    let tail = flip::encode_args((vec![0xff; 100], vec![1; 10], vec![2; 3]), &mut out).unwrap();
    // Behind the last one nothing comes, so it needs no length.
    assert_eq!(out.len(), 1 + 100 + 1 + 10 + 3);
    assert!(tail.is_none());
    let tail = flip::encode_args((vec![], vec![], vec![2; 100_000]), &mut out).unwrap();
    assert_eq!(tail.unwrap().len(), 100_000);
    assert_eq!(flip::decode_output([7, 9][..].into()).unwrap(), [7, 9]);
    assert_eq!(flip(vec![1, 2], &[3, 4], &vec![5, 6]), [7, 0]);
}
