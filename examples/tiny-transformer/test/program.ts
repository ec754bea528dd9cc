import { type ChildProcess, spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

/** The programs as users run them: the build (`npm test` builds first; otherwise `pnpm build`). */
export const program = (name: string): string => fileURLToPath(new URL(`../dist/${name}.js`, import.meta.url))

export interface Ended {
  code: number | null
  signal: string | null
  stdout: string
  stderr: string
}

export interface Started {
  child: ChildProcess
  ended: Promise<Ended>
  /** Waits until the standard output has what is looked for; fails if the program ends before. */
  prints(what: RegExp): Promise<void>
  /** The standard output so far. */
  printed(): string
}

const children: ChildProcess[] = []

/** After the tests of a file: ends what a failed test has left. */
export function killAll(): void {
  for (const child of children) child.kill('SIGKILL')
}

export function start(
  args: readonly string[],
  { name = 'main', env = {}, shell }: { name?: string; env?: Record<string, string>; shell?: string } = {},
): Started {
  const line = [process.execPath, program(name), ...args]
  return shell
    ? startProcess(['-c', `${shell}\nexec "$@"`, 'bash', ...line], env, 'bash')
    : startProcess(line.slice(1), env)
}

/** Starts a process: Node, if nothing else is said. */
export function startProcess(
  args: readonly string[],
  env: Record<string, string> = {},
  command = process.execPath,
): Started {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } })
  children.push(child)
  let stdout = ''
  let stderr = ''
  const waiting = new Set<() => void>()
  child.stdout.on('data', (d) => {
    stdout += d
    for (const look of waiting) look()
  })
  child.stderr.on('data', (d) => {
    stderr += d
  })
  const ended = new Promise<Ended>((resolve) => {
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
  })
  return {
    child,
    ended,
    printed: () => stdout,
    prints: (what) =>
      new Promise((resolve, reject) => {
        const look = (): void => {
          if (what.test(stdout)) resolve()
        }
        waiting.add(look)
        look()
        void ended.then((e) => reject(new Error(`ended without ${what}: ${JSON.stringify(e)}`)))
      }),
  }
}
