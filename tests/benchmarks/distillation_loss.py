"""Time and memory of the chunked distillation loss against the textbook formula: forward, backward, peak memory.

    python tests/benchmarks/distillation_loss.py --tokens 25088 --prototypes 65536 --device cuda

Each is run in a process of its own, so that the peak is its own; on the CPU memory is the process's peak above what it
held before. Prints one line for each and the ratios.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from training.nn.distillation import distill

TAU_S, TAU_T, BOTTLENECK = 0.1, 0.04, 256


def textbook(student, student_prototypes, teacher, teacher_prototypes, bias):
    target = torch.softmax((teacher @ teacher_prototypes.T).float() / TAU_T - bias, -1)
    log_predicted = torch.log_softmax((student @ student_prototypes.T).float() / TAU_S, -1)
    return -(target * log_predicted).sum(-1).mean()


def chunked(*tensors):
    return distill(*tensors, student_temperature=TAU_S, teacher_temperature=TAU_T).loss


def measure(name: str, tokens: int, prototypes: int, device: str, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)

    def unit(rows: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, BOTTLENECK, device=device), dim=-1)

    tensors = [unit(tokens), unit(prototypes), unit(tokens), unit(prototypes), torch.zeros(prototypes, device=device)]
    student, student_prototypes = tensors[0].requires_grad_(), tensors[1].requires_grad_()
    run = {"textbook": textbook, "chunked": chunked}[name]
    before = _memory(device)
    times = []
    for _ in range(repeats + 1):
        student.grad = student_prototypes.grad = None
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = run(*tensors)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    median = sorted(times[1:])[repeats // 2]
    return {"loss": loss.item(), "seconds": median, "mib": (_memory(device) - before) / 2**20}


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=6272)
    parser.add_argument("--prototypes", type=int, default=65536)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("textbook", "chunked"))
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.tokens, args.prototypes, args.device, args.repeats)))
        return
    results = {}
    for name in ("textbook", "chunked"):
        output = subprocess.run([sys.executable, *sys.argv, "--only", name], capture_output=True, text=True, check=True)
        results[name] = json.loads(output.stdout.splitlines()[-1])
        loss, seconds, mib = results[name].values()
        print(f"{name:9} loss {loss:.6f}  {seconds:7.3f} s  {mib:9.1f} MiB")
    ratio = {key: results["chunked"][key] / results["textbook"][key] for key in ("seconds", "mib")}
    print(f"chunked / textbook: time {ratio['seconds']:.2f}, memory {ratio['mib']:.3f} (1/{1 / ratio['mib']:.1f})")


if __name__ == "__main__":
    main()
