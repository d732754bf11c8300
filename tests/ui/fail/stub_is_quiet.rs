use pool_core::{Task, pool_task};

// The only mistake is in the signature, so code that uses the task gets no errors.

#[pool_task]
fn largest<T: Ord>(numbers: Vec<T>) -> Option<T> {
    numbers.into_iter().max()
}

#[pool_task]
async fn length(text: &str) -> usize {
    text.len()
}

fn map<T, A>(_task: T, _inputs: impl IntoIterator<Item = A>) -> Vec<T::Output>
where
    T: Task<Args = (A,)>,
{
    Vec::new()
}

fn apply<T: Task>(_task: T, _args: T::Args) -> Option<T::Output> {
    None
}

fn main() {
    for found in map(largest, [vec![1, 2, 3]]) {
        println!("{}", found.unwrap() + 1);
    }
    let total: usize = map(length, [String::from("a")]).iter().sum();
    let one = apply(length, (String::from("a"),)).unwrap() + total;
    println!("{one} {}", largest(vec![1]).unwrap());
}
