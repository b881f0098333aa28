"""A train script in the manner of timm's, with what of it touches mixing; the launcher runs it.

It imports and calls timm as timm's own script does, and writes the parameters that it ends with.
"""

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from timm import utils
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader
from timm.layers import convert_sync_batchnorm
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, LogitDistillationTask, resume_task_checkpoint
from timm.utils import NativeScaler

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir")
parser.add_argument("--output", type=Path)
parser.add_argument("--model", default="test_resnet")
parser.add_argument("--num-classes", type=int, default=2)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--mixup", type=float, default=0.0)
parser.add_argument("--cutmix", type=float, default=0.0)
parser.add_argument("--mixup-switch-prob", type=float, default=0.5)
parser.add_argument("--mixup-mode", default="batch")
parser.add_argument("--mixup-off-epoch", type=int, default=0)
parser.add_argument("--smoothing", type=float, default=0.1)
parser.add_argument("--drop-path", type=float)
parser.add_argument("--amp-dtype", choices=("float16", "bfloat16"))
parser.add_argument("--grad-accum-steps", type=int, default=1)
parser.add_argument("--clip-grad", type=float)
parser.add_argument("--resume")
parser.add_argument("--torchcompile")
for name in ("no-prefetcher", "channels-last", "model-ema", "bce-loss", "sync-bn"):
    parser.add_argument(f"--{name}", action="store_true")
for name in ("distill", "naflex", "no-task", "by-hand"):  # what the tests need beside
    parser.add_argument(f"--{name}", action="store_true")


def main():
    args = parser.parse_args()
    args.prefetcher = not args.no_prefetcher
    device = utils.init_distributed_device(argparse.Namespace(device="cpu"))
    utils.random_seed(0, 0)
    model = create_model(args.model, num_classes=args.num_classes, drop_path_rate=args.drop_path)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.sync_bn:
        model = convert_sync_batchnorm(model)
    mixup_fn, collate_fn = None, None
    if args.mixup > 0 or args.cutmix > 0:
        mixup_args = {
            "mixup_alpha": args.mixup,
            "cutmix_alpha": args.cutmix,
            "switch_prob": args.mixup_switch_prob,
            "mode": args.mixup_mode,
            "label_smoothing": args.smoothing,
            "num_classes": args.num_classes,
        }
        if args.naflex:
            from timm.data import NaFlexMixup

            mixup_args.pop("mode")
            NaFlexMixup(**mixup_args)
        elif args.by_hand:
            from sage_timm import SageMixup

            mixup_fn = SageMixup(**mixup_args)
        elif args.prefetcher:
            collate_fn = FastCollateMixup(**mixup_args)
        else:
            mixup_fn = Mixup(**mixup_args)
    loader = create_loader(
        create_dataset("", args.data_dir, split="train"),
        input_size=(3, 32, 32),
        batch_size=4,
        is_training=True,
        use_prefetcher=args.prefetcher,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        hflip=0.0,
        color_jitter=0.0,
        num_workers=0,
        persistent_workers=False,
        collate_fn=collate_fn,
        device=device,
    )
    loss_fn = BinaryCrossEntropy() if args.bce_loss else SoftTargetCrossEntropy()
    if args.no_task:
        for x, y in loader:
            if mixup_fn is not None:
                x, y = mixup_fn(x, y)
            loss_fn(model(x), y).backward()
        return
    if args.distill:
        task = LogitDistillationTask(model, args.model, criterion=loss_fn, device=device)
    else:
        task = ClassificationTask(model, loss_fn, device=device, verbose=False)
    if args.by_hand:
        mixup_fn.attach(model, loss_fn)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=0.05, momentum=0.9)
    scaler = NativeScaler(device="cpu") if args.amp_dtype == "float16" else None
    first_epoch = 0
    if args.resume:
        first_epoch = resume_task_checkpoint(task, args.resume, optimizer, log_info=False)
    if args.model_ema:
        task.setup_ema(decay=0.5)
    if args.torchcompile:
        task.compile(backend=args.torchcompile)
    if utils.is_distributed_env():
        task.prepare_distributed()
    autocast = nullcontext
    if args.amp_dtype:
        autocast = partial(torch.autocast, "cpu", getattr(torch, args.amp_dtype))
    for epoch in range(first_epoch or 0, args.epochs):
        utils.random_seed(epoch, 0)
        train_one_epoch(epoch, task, loader, optimizer, scaler, autocast, mixup_fn, args)
        save = {"epoch": epoch, "version": 2, "optimizer": optimizer.state_dict()}
        save |= task.get_checkpoint_state()
        rank = utils.distributed.world_info_from_env()[1]
        torch.save(save, args.output / f"rank{rank}.pt")


def train_one_epoch(epoch, task, loader, optimizer, scaler, autocast, mixup_fn, args):
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        if args.prefetcher and loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False
    module = task.get_trainable_module()
    module.train()
    optimizer.zero_grad()
    for index, (x, y) in enumerate(loader):
        update = (index + 1) % args.grad_accum_steps == 0
        if not args.prefetcher and mixup_fn is not None:
            x, y = mixup_fn(x, y)
        if args.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with nullcontext() if update else task.no_sync():
            with autocast():
                loss = task(x, y)["loss"]
            loss = loss / args.grad_accum_steps
            clip = None if args.clip_grad is None else task.get_clip_parameters()
            if scaler is not None:
                scaler(
                    loss, optimizer, clip_grad=args.clip_grad, parameters=clip, need_update=update
                )
            else:
                loss.backward()
                if update:
                    if clip is not None:
                        utils.dispatch_clip_grad(clip, value=args.clip_grad)
                    optimizer.step()
        if update:
            optimizer.zero_grad()
            task.update_ema()


if __name__ == "__main__":
    main()
