"""The loop with people: a policy answers, people rank, the reward model learns from old and new rankings, PPO goes on."""
