"""Run by test_whole_iterations.py on each rank: iterations of the trainer beside loops in float64 that were written from the papers alone.

whole_iterations_driver.py OUTPUT       rank 0 writes {case: {figure or weight: largest deviation over the iterations}}

The loops take what was said, and the order of minibatches and demonstrations, from the trainer; all else they compute by themselves,
one response after the other, without padding, masks, micro-batches or ranks.
"""

import copy
import math
import sys
from collections import defaultdict

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from stages.blocks import HardwareSettings
from stages.ppo.actor_critic import Actor, ActorCritic, init_critic
from stages.ppo.trainer import PPOTrainer
from stages.process.engine import Engine
from stages.process.ranks import Ranks
from stages.process.seeds import derive_seed
from stages.settings import PPOSettings
from tests.stages import tiny_models

ITERATIONS = 3
SIZES = {"iterations": 6, "rollout_batch_size": 8, "minibatch_size": 4, "max_tokens_per_microbatch": 32, "rollout_micro_batch_size": 3}
CASES = {
    "plain": {},
    "everything": {
        "temperature": 1.7,
        "gamma": 0.97,
        "gae_lambda": 0.9,
        "kl_target": 0.05,
        "kl_horizon": 100,
        "scale_scores": True,
        "score_clip": 1.0,
        "whiten_rewards": True,
        "max_grad_norm": 0.3,
        "lr_schedule": "cosine",
        "warmup_steps": 2,
        "min_lr_ratio": 0.1,
        "weight_decay": 0.1,
        "ema_decay": 0.9,
        "critic_learning_rate": 1e-3,
        "clip_range": 0.05,
        "value_clip_range": 0.05,
    },
    "adapter": {
        "ptx_coef": 2.0,
        "ptx_batch_size": 6,
        "critic_warmup_iterations": 1,
        "missing_eos_score": -3.0,
        "minibatch_size": 2,
        "value_coef": 1.0,
        "lora": {"rank": 2},
    },
}


class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2, after clipping by the global norm."""

    def __init__(self, module, settings):
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in self.weights]
        self.settings, self.steps = settings, 0

    def step(self, learning_rate):
        """Move the weights, and return the norm of the gradient before clipping."""
        settings, self.steps = self.settings, self.steps + 1
        gradients = [weight.grad for weight in self.weights]
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        shrink = settings.max_grad_norm / max(norm, settings.max_grad_norm)
        beta1, beta2 = settings.adam_beta1, settings.adam_beta2
        with torch.no_grad():
            for weight, gradient, (mean, square) in zip(self.weights, gradients, self.moments, strict=True):
                mean.mul_(beta1).add_((1 - beta1) * shrink * gradient)
                square.mul_(beta2).add_((1 - beta2) * (shrink * gradient) ** 2)
                weight.mul_(1 - learning_rate * settings.weight_decay)
                update = mean / (1 - beta1**self.steps) / ((square / (1 - beta2**self.steps)).sqrt() + settings.adam_epsilon)
                weight.sub_(learning_rate * update)
                weight.grad = None
        return norm


def average(values):
    return sum(values) / len(values)


def spread(values):
    return math.sqrt(average([(value - average(values)) ** 2 for value in values]))


class Loops:
    """PPO by loops, in float64."""

    def __init__(self, trainer, reward_model, demonstrations):
        self.settings, self.demonstrations = trainer.settings, demonstrations
        self.stop = trainer.sampling.stop_token_id
        models = (trainer.actor.module, trainer.reference, trainer.critic.module, reward_model)
        self.policy, self.reference, self.critic, self.reward_model = (copy.deepcopy(model).double() for model in models)
        self.calibration = reward_model.calibration
        self.adam, self.critic_adam = AdamW(self.policy, self.settings), AdamW(self.critic, self.settings)
        self.ema = [weight.detach().clone() for weight in self.adam.weights]
        self.kl_coef, self.scores_seen, self.iteration, self.demonstrations_drawn = self.settings.kl_coef, [], 0, 0

    def say(self, model, prompt, response, temperature):
        """Log-probability of each token of a response, and the entropy of what it was drawn from."""
        logits = model.policy(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / temperature).log_softmax(-1)
        chosen = torch.stack([logprobs[t, token] for t, token in enumerate(response)])
        return chosen, -(logprobs.exp() * logprobs).sum(-1)

    def value(self, prompt, response):
        hidden = self.critic.backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
        return self.critic.head(hidden)[len(prompt) - 1 : -1, 0]

    def iterate(self, experience, seed):
        """Score, penalise, estimate and update; returns the figures of the iteration."""
        with torch.no_grad():
            said = [self.look(experience, row) for row in range(len(experience.finished_B))]
            self.set_scores(said)
            self.set_advantages(said)
        figures = self.describe(said) | self.update(said, seed)
        if self.settings.kl_target is not None:
            error = max(-0.2, min(0.2, figures["objective/kl"] / self.settings.kl_target - 1))
            self.kl_coef *= 1 + error * len(said) / self.settings.kl_horizon
        self.iteration += 1
        return figures

    def look(self, experience, row):
        prompt = experience.prompt_ids_BP[row][experience.prompt_mask_BP[row]].tolist()
        response = experience.response_ids_BR[row][experience.response_mask_BR[row]].tolist()
        logprobs, entropies = self.say(self.policy, prompt, response, self.settings.temperature)
        kl = logprobs - self.say(self.reference, prompt, response, self.settings.temperature)[0]
        hidden = self.reward_model.model(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, -1]
        raw = (self.reward_model.score(hidden).item() - self.calibration.bias) / self.calibration.scale
        texts = {"prompt": prompt, "response": response, "finished": response[-1] == self.stop}
        return texts | {"old": logprobs, "entropies": entropies, "kl": kl, "values": self.value(prompt, response), "raw": raw}

    def set_scores(self, said):
        settings = self.settings
        self.scores_seen += [each["raw"] for each in said]
        scale = spread(self.scores_seen) if settings.scale_scores else 1.0
        bound = settings.score_clip or math.inf
        for each in said:
            each["score"] = max(-bound, min(bound, each["raw"] / scale))
        finished = [each["score"] for each in said if each["finished"]]
        for each in said:
            if not each["finished"]:
                each["score"] = min(each["score"], settings.missing_eos_score, average(finished) + settings.missing_eos_score)

    def set_advantages(self, said):
        settings = self.settings
        for each in said:
            each["rewards"] = [-self.kl_coef * kl for kl in each["kl"].tolist()]
            each["rewards"][-1] += each["score"]
        if settings.whiten_rewards:
            std = spread([reward for each in said for reward in each["rewards"]])
            for each in said:
                each["rewards"] = [reward / std for reward in each["rewards"]]
        for each in said:
            values, length = [*each["values"].tolist(), 0.0], len(each["response"])
            errors = [each["rewards"][t] + settings.gamma * values[t + 1] - values[t] for t in range(length)]
            decay = settings.gamma * settings.gae_lambda
            each["advantages"] = [sum(decay ** (s - t) * errors[s] for s in range(t, length)) for t in range(length)]
            each["returns"] = [advantage + value for advantage, value in zip(each["advantages"], values, strict=False)]
        everything = [advantage for each in said for advantage in each["advantages"]]
        for each in said:
            each["advantages"] = [(advantage - average(everything)) / spread(everything) for advantage in each["advantages"]]

    def describe(self, said):
        scores, tokens = [each["score"] for each in said], sum(len(each["response"]) for each in said)
        kl = average([each["kl"].sum().item() for each in said])
        returns = [value for each in said for value in each["returns"]]
        left = [value - guess for each in said for value, guess in zip(each["returns"], each["values"].tolist(), strict=True)]
        return {
            "objective/scores": average(scores),
            "objective/scores_std": spread(scores),
            "objective/reward_model_scores": average([each["raw"] for each in said]),
            "objective/kl": kl,
            "objective/kl_k3": average([(torch.exp(-each["kl"]) - 1 + each["kl"]).sum().item() for each in said]),
            "objective/rlhf_reward": average(scores) - self.kl_coef * kl,
            "objective/entropy": average([-each["old"].sum().item() for each in said]),
            "policy/entropy_avg": sum(each["entropies"].sum().item() for each in said) / tokens,
            "val/returns_avg": average(returns),
            "val/explained_variance": 1 - spread(left) ** 2 / spread(returns) ** 2,
            "eos_rate": average([each["finished"] for each in said]),
            "response_length": tokens / len(said),
            "tokens": tokens,
            "kl_coef": self.kl_coef,
        }

    def update(self, said, seed):
        settings, sums, norms = self.settings, defaultdict(float), []
        trains = self.iteration >= settings.critic_warmup_iterations
        rate = self.learning_rate()
        for epoch in range(settings.ppo_epochs):
            order = torch.randperm(len(said), generator=torch.Generator().manual_seed(derive_seed(seed, epoch))).tolist()
            for start in range(0, len(order), settings.minibatch_size):
                minibatch = [said[place] for place in order[start : start + settings.minibatch_size]]
                tokens = sum(len(each["response"]) for each in minibatch)
                losses = [self.lose(each, sums) for each in minibatch]
                policy_loss = sum(loss for loss, _ in losses) / tokens
                if trains and settings.ptx_coef:
                    policy_loss = policy_loss + settings.ptx_coef * self.lose_likelihood(sums)
                (settings.value_coef * sum(loss for _, loss in losses) / tokens).backward()
                norm = 0.0
                if trains:
                    policy_loss.backward()
                    norm = self.adam.step(rate * settings.learning_rate)
                    decay = settings.ema_decay or 0.0
                    self.ema = [decay * mean + (1 - decay) * w.detach() for mean, w in zip(self.ema, self.adam.weights, strict=True)]
                norms.append((norm, self.critic_adam.step(rate * (settings.critic_learning_rate or settings.learning_rate))))
        means = {name: total / sums["tokens"] for name, total in sums.items() if "/" in name}
        means["val/ratio_var"] -= means["val/ratio"] ** 2
        if "ptx_tokens" in sums:
            means["loss/ptx"] = sums["loss/ptx"] / sums["ptx_tokens"]
        steps = {"policy/grad_norm": average([norm for norm, _ in norms]), "val/grad_norm": average([norm for _, norm in norms])}
        return means | steps | {"lr": rate * settings.learning_rate, "optimizer_steps": len(norms)}

    def lose(self, each, sums):
        """Sums over a response's tokens of the clipped surrogate loss and of the clipped value loss."""
        settings, policy_loss, value_loss = self.settings, 0.0, 0.0
        logprobs, _ = self.say(self.policy, each["prompt"], each["response"], settings.temperature)
        values = self.value(each["prompt"], each["response"])
        for t, (advantage, target) in enumerate(zip(each["advantages"], each["returns"], strict=True)):
            log_ratio, old_value = logprobs[t] - each["old"][t], each["values"][t]
            ratio = log_ratio.exp()
            free, clipped = advantage * ratio, advantage * ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
            near = old_value + (values[t] - old_value).clamp(-settings.value_clip_range, settings.value_clip_range)
            free_error, near_error = (values[t] - target) ** 2, (near - target) ** 2
            policy_loss = policy_loss - torch.minimum(free, clipped)
            value_loss = value_loss + torch.maximum(free_error, near_error) / 2
            sums["policy/clipfrac_avg"] += float(clipped < free)
            sums["val/clipfrac_avg"] += float(near_error > free_error)
            sums["policy/approxkl_avg"] += log_ratio.item() ** 2 / 2
            sums["val/ratio"] += ratio.item()
            sums["val/ratio_var"] += ratio.item() ** 2
            sums["tokens"] += 1
        sums["loss/policy_avg"] += policy_loss.item()
        sums["loss/value_avg"] += value_loss.item()
        return policy_loss, value_loss

    def lose_likelihood(self, sums):
        loss, tokens, count = 0.0, 0, len(self.demonstrations)
        for place in range(self.demonstrations_drawn, self.demonstrations_drawn + self.settings.ptx_batch_size):
            generator = torch.Generator().manual_seed(derive_seed(derive_seed(3, 3), place // count))
            pair = self.demonstrations[torch.randperm(count, generator=generator)[place % count]]
            loss = loss - self.say(self.policy, pair.prompt_ids, pair.response_ids, 1.0)[0].sum()
            tokens += len(pair.response_ids)
        self.demonstrations_drawn += self.settings.ptx_batch_size
        sums["loss/ptx"] += loss.item()
        sums["ptx_tokens"] += tokens
        return loss / tokens

    def learning_rate(self):
        """The share of its peak."""
        settings = self.settings
        if self.iteration < settings.warmup_steps:
            return (self.iteration + 1) / settings.warmup_steps
        done = (self.iteration - settings.warmup_steps) / (settings.iterations - settings.warmup_steps)
        left = (1 + math.cos(math.pi * done)) / 2 if settings.lr_schedule == "cosine" else 1 - done
        return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * left


def make_trainer(ranks, settings, reward_model, demonstrations):
    policy = tiny_models.make_policy()
    ref_policy = copy.deepcopy(policy)
    if settings.lora:
        torch.manual_seed(5)
        policy = get_peft_model(policy, LoraConfig(r=settings.lora.rank, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    sampling = tiny_models.list_builders().sampling(temperature=settings.temperature)
    engine = Engine("ddp" if ranks.count > 1 else "none", HardwareSettings(device="cpu", precision="float32"), 1.0)
    actor_critic = ActorCritic(Actor(policy), init_critic(copy.deepcopy(reward_model)))
    given = (actor_critic, ref_policy, copy.deepcopy(reward_model), tiny_models.PROMPTS, sampling, settings)
    return PPOTrainer(ranks, *given, seed=3, engine=engine, demonstrations=demonstrations)


class Heard:
    """Stands before the updater, and keeps what it is given."""

    def __init__(self, updater):
        self.updater, self.given = updater, None

    def update(self, experience, seed, **more):
        self.given = experience, seed
        return self.updater.update(experience, seed, **more)


def deviate(ranks, changes):
    """Deviations of the trainer's figures and weights from those of the loops; none on other ranks than the first, which only train."""
    settings = PPOSettings(**{"ppo_epochs": 3, "learning_rate": 3e-3} | SIZES | changes)
    reward_model, demonstrations = tiny_models.make_reward_model(), tiny_models.make_demonstrations()
    trainer = make_trainer(ranks, settings, reward_model, demonstrations)
    loops = Loops(trainer, reward_model, demonstrations)
    trainer.updater = Heard(trainer.updater)
    found = defaultdict(float)
    for _ in range(ITERATIONS):
        figures = trainer.step()
        if not ranks.is_main:
            continue
        for name, value in loops.iterate(*trainer.updater.given).items():
            found[name] = max(found[name], abs(figures[name] - value) / max(1.0, abs(value)))
        experience = trainer.updater.given[0]
        found["longest"] = max(found["longest"], experience.response_mask_BR.sum(dim=1).max().item())
        found["unfinished"] += (~experience.finished_B).sum().item()
    if ranks.is_main:
        found["kl_coef"] = abs(trainer.kl_coef / loops.kl_coef - 1)
        pairs = {"policy": (AdamW(trainer.actor.module, settings).weights, loops.adam.weights)}
        pairs["critic"] = (AdamW(trainer.critic.module, settings).weights, loops.critic_adam.weights)
        if trainer.average:
            pairs["ema"] = (list(trainer.average.averages.values()), loops.ema)
        for name, (ours, theirs) in pairs.items():
            found[name] = max((one.double() - other).abs().max().item() for one, other in zip(ours, theirs, strict=True))
    return dict(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    ranks = Ranks(accelerator)
    cases = CASES if ranks.count == 1 else {name: changes for name, changes in CASES.items() if changes}
    results = {name: deviate(ranks, changes) for name, changes in cases.items()}
    if ranks.is_main:
        torch.save(results, sys.argv[1])
    accelerator.end_training()
