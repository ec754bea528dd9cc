import { SingleBar } from 'cli-progress'
import { duration } from './duration.ts'

/** Shows how a run goes on: a bar on a terminal, lines where there is none. */
export interface Progress {
  begin(): void
  step(done: number, loss: number, tokensPerSecond: number): void
  validated(step: number, loss: number): void
  /** Writes something else where the bar is. */
  aside(write: () => void): void
  end(): void
}

export const progress = (steps: number): Progress => (process.stderr.isTTY ? barOf(steps) : linesOf(steps))

const shown = (began: number, steps: number, done: number): string =>
  duration((((performance.now() - began) / done) * (steps - done)) / 1000)

const speedOf = (tokensPerSecond: number): string => Math.round(tokensPerSecond).toLocaleString('en')

function linesOf(steps: number): Progress {
  let began = 0
  return {
    begin() {
      began = performance.now()
    },
    step(done, loss, tokensPerSecond) {
      if (done % 100 === 0 || done === steps)
        console.log(
          `step ${done}/${steps}  loss ${loss.toFixed(3)}  ${speedOf(tokensPerSecond)} chars/s  ${shown(began, steps, done)} left`,
        )
    },
    validated: (step, loss) => console.log(`step ${step}: held-out loss ${loss.toFixed(3)}`),
    aside: (write) => write(),
    end() {},
  }
}

function barOf(steps: number): Progress {
  const bar = new SingleBar({
    format: '{bar} {value}/{total}  loss {loss}  held-out {held}  {speed} chars/s  {left} left',
    hideCursor: true,
    gracefulExit: false,
    barsize: Math.max(10, Math.min(30, (process.stderr.columns ?? 80) - 75)),
    linewrap: false,
  })
  let began = 0
  let held = '-'
  let on = false
  let last = { done: 0, payload: { loss: '-', held, speed: '-', left: '?' } }
  const start = (): void => {
    on = true
    bar.start(steps, last.done, last.payload)
  }
  const stop = (): void => {
    if (on) bar.stop()
    on = false
  }
  return {
    begin() {
      began = performance.now()
      start()
    },
    step(done, loss, tokensPerSecond) {
      const left = shown(began, steps, done)
      last = { done, payload: { loss: loss.toFixed(3), held, speed: speedOf(tokensPerSecond), left } }
      if (on) bar.update(done, last.payload)
    },
    validated(_, loss) {
      held = loss.toFixed(3)
    },
    aside(write) {
      const was = on
      stop()
      write()
      if (was) start()
    },
    end: stop,
  }
}
