import { readFileSync } from 'node:fs'
import { arch, cpus, totalmem, type } from 'node:os'

/** Three digits that count. */
export const digits = (x: number): string =>
  x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toPrecision(3)

/** The model as the system names it; hypervisors often hide it, but not what the processor can do. */
function cpuName(): string {
  const model = cpus()[0]?.model.trim() ?? ''
  if (model !== '' && model !== 'unknown') return model
  let text = ''
  try {
    text = readFileSync('/proc/cpuinfo', 'utf8')
  } catch {}
  const value = (name: string): string => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(text)?.[1] ?? '?'
  const widest = ['amx_tile', 'avx512f', 'avx2'].find((flag) => value('flags').includes(flag)) ?? ''
  return `${value('vendor_id')} family ${value('cpu family')} model ${value('model')} ${widest} (${arch()})`
}

/** Cores, memory, system and Node in a line. */
export const machineName = (): string =>
  `${cpus().length} × ${cpuName()}, ${(totalmem() / 2 ** 30).toFixed(0)} GiB, ${type()}, Node ${process.versions.node}`
