/** Signals that ask a program to end. */
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

export type StopSignal = (typeof SIGNALS)[number]

/**
 * A program that starts this one hands its own signals on as messages. Whoever signals a whole group of processes reaches
 * both: what comes as a message so many milliseconds after a signal, or before one, is that signal.
 */
const AFTER = 2000
const BEFORE = 200

/** When whoever started this process is gone, it is stopped, and ended if that takes more than so many milliseconds. */
const ALONE = 10_000

/**
 * Calls `act` for every signal to end.
 *
 * @returns stops listening: the next signal then ends the process.
 */
export function listenForSignals(act: (signal: StopSignal) => void): () => void {
  let last = Number.NEGATIVE_INFINITY
  const direct = (signal: StopSignal): void => {
    last = performance.now()
    act(signal)
  }
  let waiting: NodeJS.Timeout | undefined
  const forwarded = (message: unknown): void => {
    const signal = SIGNALS.find((s) => s === (message as { signal?: unknown } | null)?.signal)
    if (!signal || waiting) return
    waiting = setTimeout(() => {
      waiting = undefined
      if (performance.now() - last > AFTER) act(signal)
    }, BEFORE)
  }
  const orphaned = (): void => {
    act('SIGTERM')
    setTimeout(() => process.kill(process.pid, 'SIGKILL'), ALONE).unref()
  }
  for (const signal of SIGNALS) process.on(signal, direct)
  if (process.send) {
    process.on('message', forwarded)
    process.on('disconnect', orphaned)
    // Says that signals may come as messages.
    process.send({ takesSignals: true })
    process.channel?.unref()
  }
  return () => {
    for (const signal of SIGNALS) process.off(signal, direct)
    process.off('message', forwarded)
    process.off('disconnect', orphaned)
  }
}
