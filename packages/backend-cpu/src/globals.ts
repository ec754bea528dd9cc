/**
 * The names of WebAssembly's types, without content: programs whose compiler knows neither DOM's nor Node's can use this
 * package's types, too. Where either is there, both declarations are one interface.
 */
declare global {
  namespace WebAssembly {
    interface Memory {}
  }
}

export {}
