import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { type AttentionKind, attentionKinds } from 'tilegrad'
import { UsageError } from './usage-error.ts'

export interface Options {
  data?: string
  steps: number
  seed: number
  threads?: number
  backend: 'cpu' | 'webgpu' | 'reference'
  attention: AttentionKind
  window?: number
  layers: number
  heads: number
  width: number
  block: number
  batch: number
  accumulate: number
  dropout: number
  bias: boolean
  lr: number
  minLr: number
  warmup: number
  beta2: number
  weightDecay: number
  clip: number
  evalEvery: number
  evalBatches: number
  sample: number
  out: string
}

const whole =
  (least: number, most = Number.POSITIVE_INFINITY) =>
  (text: string): number => {
    const n = Number(text)
    const range =
      most === Number.POSITIVE_INFINITY
        ? `at least ${least}`
        : `from ${least} to ${most.toLocaleString('en')}`
    if (text.trim() === '' || !Number.isSafeInteger(n) || n < least || n > most)
      throw new InvalidArgumentError(`expected a whole number, ${range}`)
    return n
  }

const real =
  (least: number, below = Number.POSITIVE_INFINITY) =>
  (text: string): number => {
    const x = Number(text)
    const range = below === Number.POSITIVE_INFINITY ? `at least ${least}` : `from ${least} to below ${below}`
    if (text.trim() === '' || !(x >= least && x < below))
      throw new InvalidArgumentError(`expected a number, ${range}`)
    return x
  }

/** The sizes and rates of a job where the command line says nothing. */
type Defaults = Pick<Options, 'steps' | 'lr' | 'out'>

/** A program: what it is called, what it does, and its defaults. */
export interface Program {
  readonly name: string
  /** The command that people type. */
  readonly typed: string
  readonly description: string
  readonly defaults: Defaults
  /** Whether it learns from Moby-Dick where no text is given. */
  readonly hasText: boolean
  /** Whether it writes a sample. */
  readonly samples: boolean
}

/** The command line of a program. */
function command({ name, typed, description, defaults, hasText, samples }: Program): Command {
  const command = new Command(name)
    .description(description)
    .usage(`[options]     (after \`${typed}\`)`)
    .option('--data <file>', `a UTF-8 text to learn from (${hasText ? 'default: Moby-Dick' : 'needed'})`)
    .option('--steps <n>', 'optimiser steps', whole(1), defaults.steps)
    .option('--seed <n>', 'the same seed gives the same run', whole(0), 1337)
    .option('--threads <n>', 'CPU threads (default: all cores)', whole(1, 256))
    .addOption(
      new Option('--backend <name>', 'where to compute')
        .choices(['cpu', 'webgpu', 'reference'])
        .default('cpu'),
    )
    .addOption(new Option('--attention <name>', 'how to attend').choices(attentionKinds).default('softmax'))
    .option(
      '--window <n>',
      'positions that attention window sees, and dynamic beside its own 16 (default: a quarter of --block)',
      whole(1),
    )
    .option('--layers <n>', 'transformer blocks', whole(1), 4)
    .option('--heads <n>', 'attention heads per block', whole(1), 4)
    .option('--width <n>', 'size of a token’s vector, a multiple of --heads', whole(1), 128)
    .option('--block <n>', 'characters of context', whole(1), 64)
    .option('--batch <n>', 'windows per step', whole(1), 12)
    .option('--accumulate <n>', 'batches whose gradients make one step', whole(1), 1)
    .option('--dropout <p>', 'share of activations dropped while training', real(0, 1), 0)
    .option('--bias', 'biases in linear and norm layers', false)
    .option('--lr <x>', 'highest learning rate', real(0), defaults.lr)
    .option('--min-lr <x>', 'learning rate at the end', real(0), 1e-4)
    .option('--warmup <n>', 'steps of rising learning rate', whole(0), 100)
    .option('--beta2 <x>', 'AdamW’s memory of squared gradients', real(0, 1), 0.99)
    .option('--weight-decay <x>', 'AdamW’s decay of matrices', real(0), 0.1)
    .option('--clip <x>', 'largest gradient norm; 0: no limit', real(0), 1)
    .option('--eval-every <n>', 'steps between validation losses', whole(1), 100)
    .option('--eval-batches <n>', 'batches in a validation loss', whole(1, 1_000_000), 20)
  if (samples) command.option('--sample <n>', 'characters to write at the end', whole(0), 500)
  return command
    .option('--out <dir>', 'where results go', defaults.out)
    .addHelpText(
      'after',
      '\nCtrl-C stops early and keeps what was learned; a second one ends at once. The weights and all that is needed to\n' +
        'use them are in model.safetensors, from the first step on also in checkpoint.safetensors until the run ends.',
    )
    .allowExcessArguments(false)
}

/** Parses arguments. @throws UsageError for a bad one; exits 0 for --help. */
export function parseOptions(from: Program, args: readonly string[]): Options {
  const program = command(from)
    .exitOverride()
    .configureOutput({ writeErr: () => {} })
  try {
    program.parse(args, { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) process.exit(0)
    throw new UsageError(
      `${(error as Error).message.replace(/^error: /, '').replaceAll('\n', ' ')}; --help lists the options`,
    )
  }
  const options: Options = { ...program.opts<Options>(), ...(!from.samples && { sample: 0 }) }
  if (options.data === undefined && !from.hasText)
    throw new UsageError('--data FILE is needed: a UTF-8 text to learn from')
  if (options.width % options.heads !== 0)
    throw new UsageError(
      `--width ${options.width} must be a multiple of --heads ${options.heads}; try --width ${options.heads * Math.ceil(options.width / options.heads)}`,
    )
  if (options.window !== undefined && options.attention !== 'window' && options.attention !== 'dynamic')
    throw new UsageError(`--window is for --attention window or dynamic, not ${options.attention}`)
  if (options.minLr > options.lr)
    throw new UsageError(
      `--min-lr ${options.minLr} must not be above --lr ${options.lr}; give a smaller --min-lr`,
    )
  return options
}
