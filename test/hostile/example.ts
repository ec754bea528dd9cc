import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { readSafetensors, storedValues } from 'tilegrad'

// The example as a process of its own, and what it leaves behind.

const main = fileURLToPath(new URL('../../examples/tiny-transformer/dist/main.js', import.meta.url))

export interface Ended {
  readonly code: number | null
  readonly signal: string | null
  readonly stdout: string
  readonly stderr: string
}

const children = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

/** Runs the example; `seen` is called with all it has printed, whenever that is more. */
export function example(
  args: readonly string[],
  seen: (stdout: string, child: ChildProcess) => void = () => {},
  shell?: string,
): Promise<Ended> {
  const line = [process.execPath, main, ...args]
  const [command = '', ...rest] = shell ? ['bash', '-c', `${shell}\nexec "$@"`, 'bash', ...line] : line
  const child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'] })
  children.add(child)
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (d) => {
    stdout += d
    seen(stdout, child)
  })
  child.stderr.on('data', (d) => {
    stderr += d
  })
  return new Promise((resolve) => {
    child.on('close', (code, signal) => {
      children.delete(child)
      resolve({ code, signal, stdout, stderr })
    })
  })
}

/** A new folder for files of a part, with a text in it. */
export function workplace(): { folder: string; text: string } {
  const folder = mkdtempSync(join(tmpdir(), 'tilegrad-hostile-'))
  const text = join(folder, 'text.txt')
  writeFileSync(text, 'she sells sea shells by the sea shore. '.repeat(100))
  return { folder, text }
}

/** A model small enough to train within a second, and how wide it is. */
export const small = (text: string, out: string, width = 16): string[] => [
  ...[
    '--data',
    text,
    '--out',
    out,
    '--layers',
    '1',
    '--heads',
    '1',
    '--width',
    String(width),
    '--block',
    '8',
  ],
  ...['--batch', '2', '--eval-batches', '1', '--sample', '20', '--threads', '1'],
]

/** What is wrong with a file of weights: it must hold a whole model, its alphabet and its sizes. Null: nothing. */
export function wrongWith(file: string): string | null {
  try {
    const { tensors, metadata } = readSafetensors(readFileSync(file))
    const alphabet = [...(metadata.get('alphabet') ?? '')]
    const options = JSON.parse(metadata.get('options') ?? '{}') as { width?: number }
    const table = tensors.get('wte.weight')
    if (!table || table.shape.join() !== `${alphabet.length},${options.width}`)
      return `embeddings of [${table?.shape}] for ${alphabet.length} characters and width ${options.width}`
    if (!(Number(metadata.get('steps')) > 0)) return `it has learned for ${metadata.get('steps')} steps`
    for (const [name, stored] of tensors)
      if (!storedValues(stored).every(Number.isFinite)) return `${name} is not finite`
    return null
  } catch (error) {
    return `${error}`
  }
}

/** The width of the model in a file of weights. */
export const widthIn = (file: string): number =>
  (JSON.parse(readSafetensors(readFileSync(file)).metadata.get('options') ?? '{}') as { width: number }).width

export const draftsIn = (folder: string): string[] =>
  readdirSync(folder).filter((name) => name.endsWith('.draft'))

/** Whether an error output has a stack trace. */
export const traced = (stderr: string): boolean => /\n {4}at /.test(stderr)
