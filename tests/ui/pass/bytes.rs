//! Bytes travel as one block, so they cost their length and a few bytes more.

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
    flip::encode_args(&(vec![0xff; 100], vec![1; 10], vec![2; 3]), &mut out).unwrap();
    assert_eq!(out.len(), 1 + 100 + 1 + 10 + 1 + 3);
    assert_eq!(flip::decode_output(&[2, 7, 9]).unwrap(), [7, 9]);
    assert_eq!(flip(vec![1, 2], &[3, 4], &vec![5, 6]), [7, 0]);
}
