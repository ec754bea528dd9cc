/**
 * Small facts that outlast the process: files in the user's cache directory, or the browser's localStorage. Where there is
 * neither, or no room, they are found out anew.
 */

interface Store {
  get(key: string): string | null
  set(key: string, text: string): void
}

/** In Node without an import, which bundlers for browsers would have to be told about. */
const builtin: typeof process.getBuiltinModule | undefined = globalThis.process?.getBuiltinModule

function files(module: typeof process.getBuiltinModule): Store {
  const { mkdirSync, readFileSync, renameSync, writeFileSync } = module('node:fs')
  const { createHash } = module('node:crypto')
  const { homedir } = module('node:os')
  const { join } = module('node:path')
  const { env, pid, platform } = process
  const caches =
    env.XDG_CACHE_HOME ||
    (platform === 'win32' && env.LOCALAPPDATA) ||
    join(homedir(), platform === 'darwin' ? 'Library/Caches' : '.cache')
  const folder = join(caches, 'tilegrad')
  const file = (key: string): string =>
    join(folder, `${createHash('sha256').update(key).digest('hex').slice(0, 16)}.json`)
  return {
    get: (key) => readFileSync(file(key), 'utf8'),
    set(key, text) {
      mkdirSync(folder, { recursive: true })
      // Whole or not at all, whoever else writes it.
      const part = `${file(key)}.${pid}`
      writeFileSync(part, text)
      renameSync(part, file(key))
    },
  }
}

const browser: Store = {
  get: (key) => localStorage.getItem(key),
  set: (key, text) => localStorage.setItem(key, text),
}

const store = (): Store => (builtin ? files(builtin) : browser)

/** What was remembered, as JSON says it; undefined where there is nothing that can be read. */
export function recall(key: string): unknown {
  try {
    return JSON.parse(store().get(key) ?? '')
  } catch {
    return undefined
  }
}

export function remember(key: string, value: unknown): void {
  try {
    store().set(key, JSON.stringify(value))
  } catch {
    // The next process will find out itself.
  }
}
